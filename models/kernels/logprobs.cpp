#include "models/kernels/logprobs.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_logprobs.h"
#include "models/kernels/cpu/simd_norm.h"
#include "models/kernels/head_rows.h"

namespace cairn::kernels {
namespace {

struct Shapes {
  int64_t N, D, V;
};

Shapes check_shapes(const char* op, const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                    const at::Tensor& targets, const LogprobsOptions& options) {
  if (!hidden.defined() || hidden.dim() != 2 || !weight.defined() || weight.dim() != 2) {
    throw std::invalid_argument(fmt::format("[{}] expected hidden [N, D] and weight [V, D], got {} and {}", op,
                                            describe(hidden), describe(weight)));
  }
  const Shapes shapes{hidden.size(0), hidden.size(1), weight.size(0)};
  check_floats(hidden, {shapes.N, shapes.D}, op, "hidden");
  check_floats(weight, {shapes.V, shapes.D}, op, "weight");
  check_tensor(targets, at::kInt, {shapes.N}, op, "targets");
  if (bias.defined()) check_floats(bias, {shapes.V}, op, "bias");
  if (!(options.temperature > 0))
    throw std::invalid_argument(fmt::format("[{}] temperature: {} is not positive", op, options.temperature));
  if (options.chunk_rows < 0 || options.chunk_rows % 8 != 0)
    throw std::invalid_argument(fmt::format("[{}] chunk_rows: {} is not a multiple of 8", op, options.chunk_rows));
  return shapes;
}

// Goes over `rows` in chunks: what a chunk has of its own.
struct Chunk {
  int64_t begin, count, padded;
  at::Tensor hidden, logits;     // [padded, D], [padded, V]
  std::vector<int32_t> targets;  // [count]
  bool in_place;                 // its rows lie side by side
};

template <class Visit>
void for_chunks(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                const std::vector<int64_t>& rows, int64_t chunk_rows, const Visit& visit) {
  const int64_t M = static_cast<int64_t>(rows.size()), V = weight.size(0);
  const int64_t most = chunk_rows > 0 ? chunk_rows : default_chunk_rows(V), held = std::min(most, (M + 7) / 8 * 8);
  const at::Tensor logits = at::empty({held, V}, hidden.options()),
                   buffer = at::empty({held, hidden.size(1)}, hidden.options());
  for (int64_t begin = 0; begin < M; begin += most) {
    Chunk chunk{.begin = begin, .count = std::min(most, M - begin)};
    chunk.padded = (chunk.count + 7) / 8 * 8;
    chunk.in_place = is_view(&rows[begin], chunk.count, chunk.padded);
    chunk.hidden = chunk_of(hidden, &rows[begin], chunk.count, chunk.padded, buffer);
    chunk.logits = logits.narrow(0, 0, chunk.padded);
    at::mm_out(chunk.logits, chunk.hidden, weight.t());
    for (int64_t r = 0; r < chunk.count; ++r)
      chunk.targets.push_back(targets.const_data_ptr<int32_t>()[rows[begin + r]]);
    visit(chunk);
  }
}

std::vector<float> gathered(const at::Tensor& x, const std::vector<int64_t>& rows) {
  std::vector<float> out(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) out[i] = x.const_data_ptr<float>()[rows[i]];
  return out;
}

LogprobRows rows_of(Chunk& chunk, const at::Tensor& bias, const LogprobsOptions& options) {
  LogprobRows job;
  job.rows = static_cast<size_t>(chunk.count), job.columns = static_cast<size_t>(chunk.logits.size(1));
  job.logits = chunk.logits.mutable_data_ptr<float>();
  job.targets = chunk.targets.data();
  job.bias = floats_or_null(bias);
  job.softcap = static_cast<float>(options.softcap), job.temperature = static_cast<float>(options.temperature);
  return job;
}

}  // namespace

Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options) {
  const char* op = "linear_logprobs";
  const Shapes shapes = check_shapes(op, hidden, weight, bias, targets, options);
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> rows = predicted_rows(targets, shapes.V, op);
  Logprobs out{.logprobs = at::zeros({shapes.N}, hidden.options()), .lse = at::zeros({shapes.N}, hidden.options())};
  if (options.entropy) out.entropy = at::zeros({shapes.N}, hidden.options());
  std::vector<float> logprobs(rows.size()), entropy(rows.size()), lse(rows.size());
  for_chunks(hidden, weight, targets, rows, options.chunk_rows, [&](Chunk& chunk) {
    LogprobRows job = rows_of(chunk, bias, options);
    job.logprobs = &logprobs[chunk.begin], job.lse = &lse[chunk.begin];
    if (options.entropy) job.entropy = &entropy[chunk.begin];
    simd_logprobs(job);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    out.logprobs.mutable_data_ptr<float>()[rows[i]] = logprobs[i];
    out.lse.mutable_data_ptr<float>()[rows[i]] = lse[i];
    if (options.entropy) out.entropy.mutable_data_ptr<float>()[rows[i]] = entropy[i];
  }
  return out;
}

at::Tensor linear_logprobs_backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& targets, const LogprobsOptions& options, const Logprobs& forward,
                                    const at::Tensor& dlogprobs, const at::Tensor& dentropy, const at::Tensor& dweight,
                                    const at::Tensor& dbias) {
  const char* op = "linear_logprobs_backward";
  const Shapes shapes = check_shapes(op, hidden, weight, bias, targets, options);
  check_floats(dlogprobs, {shapes.N}, op, "dlogprobs");
  check_floats(forward.lse, {shapes.N}, op, "lse");
  if (dentropy.defined()) {
    check_floats(dentropy, {shapes.N}, op, "dentropy");
    check_floats(forward.entropy, {shapes.N}, op, "entropy");
  }
  if (dweight.defined()) check_floats(dweight, {shapes.V, shapes.D}, op, "dweight");
  if (dbias.defined()) check_floats(dbias, {shapes.V}, op, "dbias");
  const at::NoGradGuard no_grad;
  std::vector<int64_t> rows = predicted_rows(targets, shapes.V, op);
  const float *of_logprobs = dlogprobs.const_data_ptr<float>(), *of_entropy = floats_or_null(dentropy);
  std::erase_if(rows, [&](int64_t n) { return of_logprobs[n] == 0 && !(of_entropy && of_entropy[n] != 0); });

  at::Tensor dhidden = at::zeros({shapes.N, shapes.D}, hidden.options()), buffer;
  std::vector<float> lse = gathered(forward.lse, rows), from_above = gathered(dlogprobs, rows), entropy, from_entropy;
  if (dentropy.defined()) entropy = gathered(forward.entropy, rows), from_entropy = gathered(dentropy, rows);
  for_chunks(hidden, weight, targets, rows, options.chunk_rows, [&](Chunk& chunk) {
    LogprobGradientRows job{.forward = rows_of(chunk, bias, options)};
    job.forward.lse = &lse[chunk.begin];
    job.dlogprobs = &from_above[chunk.begin];
    if (dentropy.defined()) job.forward.entropy = &entropy[chunk.begin], job.dentropy = &from_entropy[chunk.begin];
    simd_logprobs_backward(job);
    float* logits = job.forward.logits;
    std::fill_n(logits + chunk.count * shapes.V, (chunk.padded - chunk.count) * shapes.V, 0.0f);
    if (chunk.in_place) {
      at::Tensor out = dhidden.narrow(0, rows[chunk.begin], chunk.count);
      at::mm_out(out, chunk.logits, weight);
    } else {
      if (!buffer.defined() || buffer.size(0) < chunk.padded)
        buffer = at::empty({chunk.padded, shapes.D}, hidden.options());
      at::Tensor out = buffer.narrow(0, 0, chunk.padded);
      at::mm_out(out, chunk.logits, weight);
      for (int64_t r = 0; r < chunk.count; ++r) {
        std::copy_n(out.const_data_ptr<float>() + r * shapes.D, shapes.D,
                    dhidden.mutable_data_ptr<float>() + rows[chunk.begin + r] * shapes.D);
      }
    }
    if (dweight.defined()) at::Tensor(dweight).addmm_(chunk.logits.t(), chunk.hidden);
    if (dbias.defined()) simd_add_rows(logits, job.forward.rows, job.forward.columns, dbias.mutable_data_ptr<float>());
  });
  return dhidden;
}

}  // namespace cairn::kernels
