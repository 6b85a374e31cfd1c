#include "models/kernels/ref/logprobs.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options) {
  const auto there = targets.to(hidden.device());
  const auto rows = at::nonzero(there >= 0).squeeze(1);                                           // [M]
  const auto target = there.index_select(0, rows).to(at::kLong);                                  // [M]
  auto logits = wide(at::mm(hidden.index_select(0, rows), weight.to(hidden.scalar_type()).t()));  // [M, V]
  if (bias.defined()) logits = logits + bias.to(logits.scalar_type());
  if (options.softcap > 0) logits = at::tanh(logits / options.softcap) * options.softcap;
  logits = logits / options.temperature;
  const auto lse = at::logsumexp(logits, {1});  // [M]
  const auto log_p = logits - lse.unsqueeze(1);
  const auto scattered = [&](const at::Tensor& x) {
    return at::zeros({hidden.size(0)}, x.options()).index_copy(0, rows, x);
  };
  Logprobs out{.logprobs = scattered(log_p.gather(1, target.unsqueeze(1)).squeeze(1)), .lse = scattered(lse.detach())};
  if (options.entropy) out.entropy = scattered(-(log_p.exp() * log_p).sum(1));
  return out;
}

}  // namespace cairn::kernels::ref
