#include "models/kernels/ref/grouped_linear.h"

#include "models/kernels/ref/activation.h"
#include "models/kernels/ref/linear.h"
#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {
namespace {

at::Tensor gated_by(const at::Tensor& gate_up, const ExpertGate& kind) {
  if (!kind.clamped) return gated(gate_up, kind.activation);
  const int64_t F = gate_up.size(-1) / 2;
  const at::Tensor wide_gate_up = wide(gate_up);
  const at::Tensor gate = at::clamp_max(wide_gate_up.narrow(-1, 0, F), kind.limit);
  const at::Tensor up = at::clamp(wide_gate_up.narrow(-1, F, F), -kind.limit, kind.limit);
  return ((up + 1) * (gate * at::sigmoid(gate * kind.alpha))).to(gate_up.scalar_type());
}

// One matrix an expert; unbind's backward pass writes the gradient of all of them once.
std::vector<at::Tensor> by_expert(const at::Tensor& leaf, int64_t experts, at::ScalarType type) {
  std::vector<int64_t> shape{experts, leaf.size(0) / experts};
  if (leaf.dim() == 2) shape.push_back(leaf.size(1));
  return leaf.to(type).view(shape).unbind(0);
}

}  // namespace

at::Tensor experts(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& weights, const at::Tensor& kept,
                   const ExpertWeights& w, const ExpertGate& gate) {
  const int64_t N = x.size(0), C = x.size(1), k = experts.size(1), E = w.down.size(0) / C;
  const at::ScalarType type = x.scalar_type();
  const at::Tensor flat = experts.reshape({-1}).to(at::kLong);  // [N k]
  const at::Tensor order = std::get<1>(at::sort(flat, /*stable=*/true, /*dim=*/0, /*descending=*/false));
  const at::Tensor back = at::empty_like(order).scatter_(0, order, at::arange(N * k, order.options()));
  const at::Tensor counts = at::bincount(flat, {}, E).cpu();
  const at::Tensor sorted = x.unsqueeze(1).expand({N, k, C}).reshape({N * k, C}).index_select(0, order);
  const auto ups = by_expert(w.gate_up, E, type), downs = by_expert(w.down, E, type);
  std::vector<at::Tensor> up_biases(E), down_biases(E), parts;
  if (w.gate_up_bias.defined()) up_biases = by_expert(w.gate_up_bias, E, type);
  if (w.down_bias.defined()) down_biases = by_expert(w.down_bias, E, type);
  int64_t row = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t count = counts.const_data_ptr<int64_t>()[e];
    if (count == 0) continue;
    const at::Tensor h = gated_by(linear(sorted.narrow(0, row, count), ups[e], up_biases[e]), gate);
    parts.push_back(linear(h, downs[e], down_biases[e]));
    row += count;
  }
  const at::Tensor out = at::cat(parts).index_select(0, back).view({N, k, C});
  at::Tensor by = weights.to(out.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  if (kept.defined()) by = by * kept.to(by.options());
  return (wide(out) * by.unsqueeze(-1)).sum(1).to(type);
}

at::Tensor within_capacity(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences) {
  const int64_t k = experts.size(1);
  const at::Tensor flat = experts.to(at::kLong).view({sequences, -1});  // [S, T k]
  const at::Tensor one_hot =
      flat.unsqueeze(-1).eq(at::arange(num_experts, flat.options())).to(at::kLong);  // [S, T k, E]
  const at::Tensor before = one_hot.cumsum(1).gather(2, flat.unsqueeze(-1)).squeeze(-1) - 1;
  return before.lt(capacity).view({-1, k});
}

at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                          const ExpertRows& rows) {
  const auto weights = by_expert(weight, rows.experts, x.scalar_type());
  std::vector<at::Tensor> biases(rows.experts), parts;
  if (bias.defined()) biases = by_expert(bias, rows.experts, x.scalar_type());
  for (int64_t e = 0; e < rows.experts; ++e) {
    const int64_t end = e + 1 < rows.experts ? rows.first[e + 1] : rows.padded;
    if (end == rows.first[e]) continue;
    parts.push_back(linear(x.narrow(0, rows.first[e], rows.count[e]), weights[e], biases[e]));
    if (const int64_t filling = end - rows.first[e] - rows.count[e])
      parts.push_back(at::zeros({filling, parts.back().size(1)}, x.options()));
  }
  return at::cat(parts);
}

}  // namespace cairn::kernels::ref
