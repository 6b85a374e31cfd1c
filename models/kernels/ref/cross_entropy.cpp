#include "models/kernels/ref/cross_entropy.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

CrossEntropyTwin linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                      const at::Tensor& targets, const CrossEntropyOptions& options) {
  const auto rows = at::nonzero(targets.to(hidden.device()) >= 0).squeeze(1);                     // [M]
  const auto target = targets.to(hidden.device()).index_select(0, rows).to(at::kLong);            // [M]
  auto logits = wide(at::mm(hidden.index_select(0, rows), weight.to(hidden.scalar_type()).t()));  // [M, V]
  if (bias.defined()) logits = logits + bias.to(logits.scalar_type());
  if (options.logit_scale != 1.0) logits = logits * options.logit_scale;
  if (options.softcap > 0) logits = at::tanh(logits / options.softcap) * options.softcap;

  const auto lse = at::logsumexp(logits, {1});                              // [M]
  const auto nll = lse - logits.gather(1, target.unsqueeze(1)).squeeze(1);  // [M]
  CrossEntropyTwin out;
  out.loss = options.scale * nll.sum();
  if (options.z_loss != 0) out.loss = out.loss + options.scale * options.z_loss * lse.square().sum();
  out.nll = nll.detach().to(at::kDouble).sum().item<double>();
  out.z = lse.detach().to(at::kDouble).square().sum().item<double>();
  if (rows.numel() > 0) out.correct = (logits.detach().argmax(1) == target).sum().item<int64_t>();
  out.row_nll = at::zeros({hidden.size(0)}, nll.options()).index_copy(0, rows, nll.detach());
  return out;
}

}  // namespace cairn::kernels::ref
