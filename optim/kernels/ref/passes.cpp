#include "optim/kernels/ref/passes.h"

namespace cairn::optim::kernels::ref {

void adamw(const at::Tensor& p, const at::Tensor& g, const at::Tensor& m, const at::Tensor& v, double decay,
           const AdamwScalars& s) {
  const at::Tensor gradient = g * s.grad_scale, wide = p.to(at::kFloat);
  m.add_(gradient - m, s.one_minus_beta1);
  v.mul_(s.beta2).addcmul_(gradient, gradient, s.one_minus_beta2);
  const at::Tensor denominator = v.sqrt().mul_(s.inv_sqrt_correction2).add_(s.eps);
  p.copy_((wide * decay).addcdiv_(m, denominator, -s.step_size));
  if (s.clear_grad) g.zero_();
}

void sgd(const at::Tensor& p, const at::Tensor& g, const at::Tensor& m, double decay, const SgdScalars& s) {
  const at::Tensor wide = p.to(at::kFloat);
  at::Tensor gradient = (g * s.grad_scale).add_(wide, decay);
  if (m.defined()) {
    m.mul_(s.momentum).add_(gradient);
    gradient = s.nesterov ? gradient.add(m, s.momentum) : m;
  }
  p.copy_(wide.add(gradient, -s.lr));
  if (s.clear_grad) g.zero_();
}

at::Tensor muon_momentum(const at::Tensor& g, const at::Tensor& m, double grad_scale, double momentum, bool nesterov) {
  const at::Tensor gradient = g * grad_scale;
  m.lerp_(gradient, 1 - momentum);
  return nesterov ? gradient.lerp(m, momentum) : m.clone();
}

void muon_apply(const at::Tensor& p, const at::Tensor& o, double decay, double lr) {
  p.copy_((p.to(at::kFloat) * decay).sub_(o, lr));
}

void ema(const at::Tensor& e, const at::Tensor& p, double one_minus_decay) {
  e.add_(p.to(at::kFloat) - e, one_minus_decay);
}

at::Tensor squared_norm_pieces(const at::Tensor& flat, int64_t piece) {
  const int64_t whole = flat.numel() / piece, at_once = 4096;  // pieces: float64 copies stay small
  std::vector<at::Tensor> sums;
  for (int64_t first = 0; first < whole; first += at_once) {
    const int64_t count = std::min(at_once, whole - first);
    sums.push_back(flat.narrow(0, first * piece, count * piece).view({count, piece}).to(at::kDouble).square().sum(1));
  }
  if (const int64_t rest = flat.numel() - whole * piece; rest > 0)
    sums.push_back(flat.narrow(0, whole * piece, rest).to(at::kDouble).square().sum().view({1}));
  return sums.empty() ? at::empty({0}, flat.options().dtype(at::kDouble)) : at::cat(sums);
}

}  // namespace cairn::optim::kernels::ref
