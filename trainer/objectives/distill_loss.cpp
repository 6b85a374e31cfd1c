#include "trainer/objectives/distill_loss.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "models/kernels/check.h"
#include "trainer/objectives/divergences.h"

namespace cairn {
namespace {

constexpr const char* kPlace = "distill loss";
// What is left to the tokens outside a teacher's file, at least: float32 probabilities that add up to 1 leave rounding,
// not nothing.
constexpr double kLeastTail = 1e-7;

// Rows of a matrix whose last dimension is contiguous.
const float* row_of(const at::Tensor& x, int64_t n) { return x.const_data_ptr<float>() + n * x.stride(0); }

void check_rows(const at::Tensor& x, at::IntArrayRef shape, const char* name) {
  if (x.defined() && x.is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 2 && x.sizes() == shape &&
      (x.stride(1) == 1 || x.size(1) <= 1))
    return;
  throw std::invalid_argument(fmt::format("[{}] {}: expected float32 {} on the CPU, last dimension contiguous, got {}",
                                          kPlace, name, shape.vec(), kernels::describe(x)));
}

// What both kinds of teachers have in common: checks, the loop over the rows, the sums in order.
class Tile {
 public:
  Tile(const at::Tensor& student, const at::Tensor& mask, double scale, const DistillOptions& options,
       const at::Tensor& dlogits, const at::Tensor& row_loss)
      : student_(student), mask_(mask), dlogits_(dlogits), row_loss_(row_loss), scale_(scale), options_(options) {
    check(options);
    if (!student.defined() || student.dim() != 2) {
      throw std::invalid_argument(
          fmt::format("[{}] student: expected [N, V], got {}", kPlace, kernels::describe(student)));
    }
    N_ = student.size(0), V_ = student.size(1);
    check_rows(student, {N_, V_}, "student");
    if (mask.defined()) kernels::check_tensor(mask, at::kBool, {N_}, kPlace, "mask");
    if (dlogits.defined()) check_rows(dlogits, {N_, V_}, "dlogits");
    if (row_loss.defined()) kernels::check_floats(row_loss, {N_}, kPlace, "row_loss");
  }
  int64_t N() const { return N_; }
  int64_t V() const { return V_; }
  bool counts(int64_t n) const { return !mask_.defined() || mask_.const_data_ptr<bool>()[n]; }

  // row(n, log_student [V], gradient [V]) returns the divergence; the gradient is by student / temperature.
  template <class Row>
  DistillOutput run(const Row& row) const {
    std::vector<double> losses(N_, 0.0), entropies(N_, 0.0);
    at::parallel_for(0, N_, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> log_student(V_), gradient(V_);
      for (int64_t n = begin; n < end; ++n) {
        const bool used = counts(n);
        if (used) {
          log_softmax(row_of(student_, n), V_, options_.temperature, log_student.data());
          losses[n] = row(n, log_student.data(), gradient.data());
          entropies[n] = entropy(log_student.data(), V_);
        }
        if (row_loss_.defined()) row_loss_.mutable_data_ptr<float>()[n] = static_cast<float>(losses[n]);
        if (!dlogits_.defined()) continue;
        float* out = dlogits_.mutable_data_ptr<float>() + n * dlogits_.stride(0);
        for (int64_t v = 0; v < V_; ++v)
          out[v] = used ? static_cast<float>(gradient[v] * scale_ / options_.temperature) : 0.0f;
      }
    });
    DistillOutput out;
    for (int64_t n = 0; n < N_; ++n) {
      out.loss += scale_ * losses[n], out.entropy += entropies[n];
      out.rows += counts(n);
    }
    return out;
  }

 private:
  const at::Tensor &student_, &mask_, &dlogits_, &row_loss_;
  const double scale_;
  const DistillOptions& options_;
  int64_t N_ = 0, V_ = 0;
};

// A row of a teacher's file: token ids and log-probabilities, the tail's share.
struct TeacherRow {
  std::vector<int32_t> ids;
  std::vector<double> logprobs;
  double mass = 0;
};
TeacherRow teacher_row(const int32_t* ids, const float* logprobs, int64_t K, int64_t V, int64_t n) {
  TeacherRow row;
  for (int64_t k = 0; k < K; ++k) {
    if (ids[k] == -1) continue;
    if (ids[k] < 0 || ids[k] >= V) {
      throw std::invalid_argument(
          fmt::format("[{}] ids: row {} names token {}, the vocabulary has {}", kPlace, n, ids[k], V));
    }
    row.ids.push_back(ids[k]);
    row.logprobs.push_back(logprobs[k]);
    row.mass += std::exp(static_cast<double>(logprobs[k]));
  }
  std::vector<int32_t> sorted = row.ids;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    throw std::invalid_argument(fmt::format("[{}] ids: row {} names a token twice", kPlace, n));
  if (row.ids.empty()) throw std::invalid_argument(fmt::format("[{}] ids: row {} names no token", kPlace, n));
  if (!(row.mass <= 1 + 1e-3)) {
    throw std::invalid_argument(fmt::format(
        "[{}] logprobs: the probabilities of row {} add up to {}: no log-probabilities", kPlace, n, row.mass));
  }
  return row;
}

}  // namespace

void check(const DistillOptions& options) {
  if (!(options.beta >= 0 && options.beta <= 1))
    throw std::invalid_argument(fmt::format("beta: {} is not between 0 and 1", options.beta));
  if (!(options.temperature > 0) || !std::isfinite(options.temperature))
    throw std::invalid_argument(fmt::format("temperature: {} is not positive", options.temperature));
}

DistillOutput distill_loss(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& mask, double scale,
                           const DistillOptions& options, const at::Tensor& dlogits, const at::Tensor& row_loss) {
  const Tile tile(student, mask, scale, options, dlogits, row_loss);
  check_rows(teacher, {tile.N(), tile.V()}, "teacher");
  const int64_t V = tile.V();
  return tile.run([&](int64_t n, const double* log_student, double* gradient) {
    std::vector<double> log_teacher(V);
    log_softmax(row_of(teacher, n), V, options.temperature, log_teacher.data());
    return divergence(options.beta, log_student, log_teacher.data(), V, gradient);
  });
}

DistillOutput distill_loss_topk(const at::Tensor& student, const at::Tensor& ids, const at::Tensor& logprobs,
                                const at::Tensor& mask, double scale, const DistillOptions& options,
                                const at::Tensor& dlogits, const at::Tensor& row_loss) {
  const Tile tile(student, mask, scale, options, dlogits, row_loss);
  if (options.temperature != 1) {
    throw std::invalid_argument(fmt::format(
        "temperature: {} with a teacher's file of log-probabilities, which were taken at 1", options.temperature));
  }
  const int64_t K = ids.defined() && ids.dim() == 2 ? ids.size(1) : 0;
  kernels::check_tensor(ids, at::kInt, {tile.N(), K}, kPlace, "ids");
  kernels::check_floats(logprobs, {tile.N(), K}, kPlace, "logprobs");
  std::vector<TeacherRow> teacher(tile.N());
  for (int64_t n = 0; n < tile.N(); ++n) {
    if (!tile.counts(n)) continue;
    teacher[n] =
        teacher_row(ids.const_data_ptr<int32_t>() + n * K, logprobs.const_data_ptr<float>() + n * K, K, tile.V(), n);
  }
  return tile.run([&](int64_t n, const double* log_student, double* gradient) {
    const TeacherRow& row = teacher[n];
    return divergence_topk(options.beta, log_student, tile.V(), row.ids, row.logprobs,
                           options.loss_add_tail ? std::optional(std::max(1 - row.mass, kLeastTail)) : std::nullopt,
                           gradient);
  });
}

}  // namespace cairn
