// The CUDA module's entries for routers and experts: they check tensors, find the stream and launch. Never run on a GPU
// so far.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/kernels/cuda/launchers_experts.h"
#include "models/kernels/cuda/module_checks.h"
#include "models/kernels/cuda/module_parts.h"

namespace cairn::kernels::cuda {
namespace {

// ---- router

Route route_job(const at::Tensor& logits, const Routing& routing, const RouterOptions& options) {
  Route job;
  job.rows = logits.size(0), job.experts = logits.size(1), job.topk = options.topk;
  job.groups = options.groups, job.topk_groups = options.topk_groups;
  job.scoring = static_cast<int>(options.scoring), job.normalise = options.normalise;
  job.scale = static_cast<float>(options.scale);
  job.logits = logits.const_data_ptr<float>();
  job.chosen = routing.experts.mutable_data_ptr<int32_t>();
  job.weights = routing.weights.mutable_data_ptr<float>();
  job.scores = routing.scores.mutable_data_ptr<float>();
  job.lse = routing.lse.mutable_data_ptr<float>();
  return job;
}

Routing route(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  const char* op = "route";
  type_of(logits, op, "logits");
  check(logits, logits, at::kFloat, logits.sizes(), op, "logits");
  const int64_t N = logits.size(0), E = logits.size(1), k = options.topk;
  if (bias.defined()) check(bias, logits, at::kFloat, {E}, op, "bias");
  const Place place(logits);
  Routing out{at::empty({N, k}, logits.options().dtype(at::kInt)), at::empty({N, k}, logits.options()),
              at::empty({N, E}, logits.options()), at::empty({N}, logits.options()), at::Tensor()};
  Route job = route_job(logits, out, options);
  job.bias = static_cast<const float*>(data_or_null(bias));
  cuda::route(job, place.stream);
  return out;
}

at::Tensor route_backward(const at::Tensor& dweights, const at::Tensor& logits, const Routing& routing,
                          const RouterOptions& options, const RouterAux& aux) {
  const char* op = "route_backward";
  type_of(logits, op, "logits");
  check(logits, logits, at::kFloat, logits.sizes(), op, "logits");
  const int64_t N = logits.size(0), E = logits.size(1), k = options.topk;
  check(dweights, logits, at::kFloat, {N, k}, op, "dweights");
  check(routing.experts, logits, at::kInt, {N, k}, op, "experts");
  check(routing.weights, logits, at::kFloat, {N, k}, op, "weights");
  check(routing.scores, logits, at::kFloat, {N, E}, op, "scores");
  check(routing.lse, logits, at::kFloat, {N}, op, "lse");
  const Place place(logits);
  const at::Tensor dlogits = at::empty({N, E}, logits.options());
  Route job = route_job(logits, routing, options);
  job.dweights = dweights.const_data_ptr<float>();
  if (aux.balance.defined()) {
    const int64_t sequences = aux.balance.size(0);
    check(aux.balance, logits, at::kFloat, {sequences, E}, op, "balance");
    if (sequences < 1 || N % sequences != 0)
      throw std::invalid_argument(fmt::format("[{}] balance: {} rows for {} tokens", op, sequences, N));
    job.balance = aux.balance.const_data_ptr<float>();
    job.sequence_rows = std::max<int64_t>(N / sequences, 1);
  }
  job.z = static_cast<float>(aux.z);
  job.dlogits = dlogits.mutable_data_ptr<float>();
  cuda::route_backward(job, place.stream);
  return dlogits;
}

// ---- experts

ExpertRows sort_by_expert(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences) {
  const char* op = "sort_by_expert";
  if (!experts.defined() || !experts.is_cuda() || experts.scalar_type() != at::kInt || experts.dim() != 2)
    throw std::invalid_argument(
        fmt::format("[{}] experts: expected int32 [N, k] on a GPU, got {}", op, describe(experts)));
  const at::Tensor chosen = experts.contiguous();
  ExpertSort job;
  job.pairs = chosen.numel(), job.experts = num_experts, job.capacity = capacity;
  if (sequences < 1 || job.pairs % sequences != 0 || job.pairs > INT32_MAX)
    throw std::invalid_argument(fmt::format("[{}] {} pairs in {} sequences: expected equal parts of fewer than 2^31",
                                            op, job.pairs, sequences));
  job.sequence_pairs = std::max<int64_t>(job.pairs / sequences, 1);
  const Place place(chosen);
  const auto ints = [&](at::IntArrayRef shape) { return at::empty(shape, chosen.options()); };
  ExpertRows rows;
  rows.tokens = chosen.size(0), rows.slots = chosen.size(1), rows.experts = num_experts, rows.padded = job.pairs;
  auto& there = rows.on_device;
  there.expert = chosen.view({-1}), there.first = ints({num_experts + 1});
  there.pair = ints({job.pairs}), there.place = ints({job.pairs});
  there.tiles = ints({expert_tiles(job.pairs, num_experts), 3});
  const at::Tensor start = ints({job.pieces(), num_experts}), room = ints({job.pieces(), num_experts});
  job.expert = chosen.const_data_ptr<int32_t>();
  job.first = there.first.mutable_data_ptr<int32_t>();
  job.pair = there.pair.mutable_data_ptr<int32_t>(), job.place = there.place.mutable_data_ptr<int32_t>();
  static_assert(sizeof(ExpertTile) == 3 * sizeof(int32_t));
  job.tiles = static_cast<ExpertTile*>(there.tiles.mutable_data_ptr());
  job.start = start.mutable_data_ptr<int32_t>(), job.room = room.mutable_data_ptr<int32_t>();
  cuda::sort_by_expert(job, place.stream);
  return rows;
}

ExpertsCall call_of(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows, const ExpertWeights& w,
                    const ExpertGate& gate, const char* op) {
  ExpertsCall call;
  call.type = type_of(x, op, "x"), call.weight_type = type_of(w.down, op, "down");
  if (x.dim() != 2 || w.down.dim() != 2)
    throw std::invalid_argument(fmt::format("[{}] x: expected [N, C] beside down [E * C, F], got {} and {}", op,
                                            describe(x), describe(w.down)));
  if (!rows.on_device.first.defined())
    throw std::invalid_argument(fmt::format("[{}] rows: expected rows that were sorted on a GPU", op));
  const int64_t N = rows.tokens, k = rows.slots, E = rows.experts, C = x.size(1), F = w.down.size(1);
  const at::ScalarType type = w.down.scalar_type();
  check(x, x, x.scalar_type(), {N, C}, op, "x");
  check(weights, x, at::kFloat, {N, k}, op, "weights");
  check(w.gate_up, x, type, {E * 2 * F, C}, op, "gate_up");
  check(w.down, x, type, {E * C, F}, op, "down");
  if (w.gate_up_bias.defined()) check(w.gate_up_bias, x, type, {E * 2 * F}, op, "gate_up_bias");
  if (w.down_bias.defined()) check(w.down_bias, x, type, {E * C}, op, "down_bias");
  check(rows.on_device.first, x, at::kInt, {E + 1}, op, "rows");
  call.tokens = N, call.slots = k, call.experts = E, call.hidden = C, call.inner = F;
  const auto ints = [](const at::Tensor& t) { return t.const_data_ptr<int32_t>(); };
  call.expert = ints(rows.on_device.expert), call.first = ints(rows.on_device.first);
  call.pair = ints(rows.on_device.pair), call.place = ints(rows.on_device.place);
  call.tiles = static_cast<const ExpertTile*>(rows.on_device.tiles.const_data_ptr());
  call.gate_up = w.gate_up.const_data_ptr(), call.gate_up_bias = data_or_null(w.gate_up_bias);
  call.down = w.down.const_data_ptr(), call.down_bias = data_or_null(w.down_bias);
  call.kind = gate.clamped ? -1 : static_cast<int>(gate.activation);
  call.alpha = static_cast<float>(gate.alpha), call.limit = static_cast<float>(gate.limit);
  call.x = x.const_data_ptr(), call.weights = weights.const_data_ptr<float>();
  return call;
}

ExpertsOutput experts_forward(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows,
                              const ExpertWeights& w, const ExpertGate& gate, bool keep) {
  ExpertsForward job;
  job.call = call_of(x, weights, rows, w, gate, "experts_forward");
  const Place place(x);
  const int64_t P = rows.padded, C = job.call.hidden, F = job.call.inner;
  const at::Tensor gates = at::empty({P, 2 * F}, x.options()), h = at::empty({P, F}, x.options()),
                   out = at::empty({P, C}, x.options());
  ExpertsOutput result{at::empty(x.sizes(), x.options()), keep ? gates : at::Tensor()};
  job.call.gates = gates.mutable_data_ptr();
  job.h = h.mutable_data_ptr(), job.out = out.mutable_data_ptr(), job.y = result.y.mutable_data_ptr();
  cuda::experts_forward(job, place.stream);
  return result;
}

ExpertsGradient experts_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weights,
                                 const ExpertRows& rows, const ExpertWeights& w, const ExpertGate& gate,
                                 const at::Tensor& gate_up, const ExpertWeights& gradients) {
  const char* op = "experts_backward";
  ExpertsBackward job;
  job.call = call_of(x, weights, rows, w, gate, op);
  const int64_t P = rows.padded, C = job.call.hidden, F = job.call.inner;
  check(dy, x, x.scalar_type(), x.sizes(), op, "dy");
  check(gate_up, x, x.scalar_type(), {P, 2 * F}, op, "gate_up");
  const auto gradient = [&](const at::Tensor& g, const at::Tensor& of, const char* name) -> float* {
    if (!g.defined()) return nullptr;
    check(g, x, at::kFloat, of.sizes(), op, name);
    return g.mutable_data_ptr<float>();
  };
  job.dgate_up = gradient(gradients.gate_up, w.gate_up, "gradient of gate_up");
  job.ddown = gradient(gradients.down, w.down, "gradient of down");
  if (w.gate_up_bias.defined())
    job.dgate_up_bias = gradient(gradients.gate_up_bias, w.gate_up_bias, "gradient of gate_up_bias");
  if (w.down_bias.defined()) job.ddown_bias = gradient(gradients.down_bias, w.down_bias, "gradient of down_bias");
  const Place place(x);
  const auto floats = x.options().dtype(at::kFloat);
  ExpertsGradient result{at::empty(x.sizes(), x.options()), at::zeros({rows.tokens, rows.slots}, floats)};
  const at::Tensor hidden = at::empty({P, F}, floats), dinputs = at::empty({P, C}, x.options());
  job.call.gates = gate_up.mutable_data_ptr();
  job.dy = dy.const_data_ptr();
  job.hidden = hidden.mutable_data_ptr<float>(), job.dinputs = dinputs.mutable_data_ptr();
  job.dx = result.dx.mutable_data_ptr(), job.dweights = result.dweights.mutable_data_ptr<float>();
  cuda::experts_backward(job, place.stream);
  return result;
}

}  // namespace

void add_experts(Table& table) {
  table.route = route;
  table.route_backward = route_backward;
  table.sort_by_expert = sort_by_expert;
  table.experts_forward = experts_forward;
  table.experts_backward = experts_backward;
}

}  // namespace cairn::kernels::cuda
