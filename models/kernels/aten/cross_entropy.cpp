#include "models/kernels/aten/cross_entropy.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "models/kernels/aten/upload.h"
#include "models/kernels/check.h"
#include "models/kernels/ref/wide.h"

namespace cairn::kernels::aten {
namespace {

// Rows of logits at once: 256 MiB of float32 beside their temporaries, enough rows for products at full speed.
int64_t default_chunk_rows(int64_t vocabulary) {
  constexpr int64_t kElements = int64_t{64} << 20;
  return std::clamp<int64_t>(kElements / vocabulary / 8 * 8, 512, 8192);
}

struct Predicted {
  at::Tensor rows, targets;  // int64 [M] on the CPU
};

Predicted predicted(const at::Tensor& targets, int64_t vocabulary) {
  const at::Tensor host = targets.cpu().contiguous();
  const int32_t* target = host.const_data_ptr<int32_t>();
  std::vector<int64_t> rows, ids;
  for (int64_t n = 0; n < host.numel(); ++n) {
    if (target[n] < -1 || target[n] >= vocabulary) {
      throw std::invalid_argument(
          fmt::format("[linear_cross_entropy] targets[{}] is {}, expected -1 or an id of the vocabulary of {}", n,
                      target[n], vocabulary));
    }
    if (target[n] < 0) continue;
    rows.push_back(n);
    ids.push_back(target[n]);
  }
  return {at::tensor(rows, at::kLong), at::tensor(ids, at::kLong)};
}

// to += a b^T-like product of g [c, V] and h [c, D]: inside the product where the types agree.
void add_outer(const at::Tensor& to, const at::Tensor& g, const at::Tensor& h) {
  if (to.scalar_type() == g.scalar_type()) {
    at::Tensor(to).addmm_(g.t(), h);
  } else {
    at::Tensor(to).add_(at::mm(g.t(), h));
  }
}

void check_shapes(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& targets) {
  const bool matrices = hidden.defined() && weight.defined() && hidden.dim() == 2 && weight.dim() == 2 &&
                        hidden.size(1) == weight.size(1) && hidden.scalar_type() == weight.scalar_type();
  if (!matrices) {
    throw std::invalid_argument(
        fmt::format("[linear_cross_entropy] expected hidden [N, D] and weight [V, D] of one type, got {} and {}",
                    describe(hidden), describe(weight)));
  }
  if (bias.defined() && bias.sizes() != at::IntArrayRef({weight.size(0)}))
    throw std::invalid_argument(fmt::format("[linear_cross_entropy] bias: expected [V], got {}", describe(bias)));
  if (!targets.defined() || targets.scalar_type() != at::kInt || targets.numel() != hidden.size(0))
    throw std::invalid_argument(
        fmt::format("[linear_cross_entropy] targets: expected int32 [N], got {}", describe(targets)));
}

}  // namespace

CrossEntropySums linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                      const at::Tensor& targets, const CrossEntropyOptions& options, bool gradients,
                                      const at::Tensor& dweight, const at::Tensor& dbias) {
  check_shapes(hidden, weight, bias, targets);
  const at::NoGradGuard no_grad;
  const int64_t N = hidden.size(0), V = weight.size(0);
  const auto device = hidden.device();
  const at::ScalarType type = hidden.scalar_type(), wide = ref::wide_type(hidden);
  const Predicted host = predicted(targets, V);
  const int64_t M = host.rows.numel();
  const bool all = M == N;

  CrossEntropySums out;
  const auto wide_options = hidden.options().dtype(wide);
  if (M == 0) {
    out.sums = at::zeros({3}, hidden.options().dtype(at::kDouble));
    out.row_nll = at::zeros({N}, wide_options);
    if (gradients) out.dhidden = at::zeros_like(hidden);
    return out;
  }
  const at::Tensor rows = all ? at::Tensor() : upload(host.rows, device), target = upload(host.targets, device);
  const at::Tensor h_all = all ? hidden : hidden.index_select(0, rows);  // [M, D]
  const at::Tensor dh_all = gradients ? at::empty_like(h_all) : at::Tensor();
  const at::Tensor nll = at::empty({M}, wide_options), lse = at::empty({M}, wide_options);
  const at::Tensor correct = at::empty({M}, hidden.options().dtype(at::kBool));
  const double one_hot = options.scale * options.logit_scale;

  const int64_t most = options.chunk_rows > 0 ? options.chunk_rows : default_chunk_rows(V);
  for (int64_t begin = 0; begin < M; begin += most) {
    const int64_t count = std::min(most, M - begin);
    const at::Tensor h = h_all.narrow(0, begin, count), t = target.narrow(0, begin, count);
    at::Tensor logits = at::mm(h, weight.t()).to(wide);  // [count, V]
    if (bias.defined()) logits.add_(bias.to(wide));
    if (options.logit_scale != 1.0) logits.mul_(options.logit_scale);
    if (options.softcap > 0) logits.div_(options.softcap).tanh_().mul_(options.softcap);

    const at::Tensor log_z = at::logsumexp(logits, {1});  // [count]
    lse.narrow(0, begin, count).copy_(log_z);
    nll.narrow(0, begin, count).copy_(log_z - logits.gather(1, t.unsqueeze(1)).squeeze(1));
    correct.narrow(0, begin, count).copy_(logits.argmax(1).eq(t));
    if (!gradients) continue;

    // As on the CPU: d/dlogit of scale * (nll + z_loss * lse^2) = scale * (p * (1 + 2 z_loss lse) - [target]), then
    // back through cap and scale.
    at::Tensor slope;
    if (options.softcap > 0) slope = 1 - (logits / options.softcap).square();
    at::Tensor g = logits.sub_(log_z.unsqueeze(1)).exp_();
    if (options.z_loss != 0) {
      g.mul_((log_z * (2 * options.z_loss) + 1).mul_(one_hot).unsqueeze(1));
    } else {
      g.mul_(one_hot);
    }
    const at::Tensor places = at::arange(count, t.options()).mul_(V).add_(t);  // of the targets in g, each once
    g.view({-1}).index_add_(0, places, at::full({count}, -one_hot, wide_options));
    if (slope.defined()) g.mul_(slope);

    const at::Tensor narrow = g.to(type);
    at::Tensor dh = dh_all.narrow(0, begin, count);
    at::mm_out(dh, narrow, weight);
    if (dweight.defined()) add_outer(dweight, narrow, h);
    if (dbias.defined()) at::Tensor(dbias).add_(g.sum(0));
  }

  out.sums = at::stack(
      {nll.sum(at::kDouble), lse.to(at::kDouble).square().sum(), correct.sum(at::kDouble)});  // in the order of Loss
  out.row_nll = all ? nll : at::zeros({N}, wide_options).index_copy_(0, rows, nll);
  if (gradients) out.dhidden = all ? dh_all : at::zeros_like(hidden).index_copy_(0, rows, dh_all);
  return out;
}

}  // namespace cairn::kernels::aten
