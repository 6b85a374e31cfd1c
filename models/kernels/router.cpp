#include "models/kernels/router.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_router.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

constexpr int64_t kRows = 64;  // that a thread takes at once

void check_options(const at::Tensor& logits, const RouterOptions& options, const char* op) {
  if (logits.dim() != 2)
    throw std::invalid_argument(fmt::format("[{}] logits: expected [N, E], got {}", op, describe(logits)));
  const int64_t E = logits.size(1);
  if (options.topk < 1 || options.topk > E || options.groups < 1 || E % options.groups != 0 ||
      options.topk_groups < 1 || options.topk_groups > options.groups ||
      (options.groups > 1 && E / options.groups < 2) || options.topk > options.topk_groups * (E / options.groups)) {
    throw std::invalid_argument(
        fmt::format("[{}] {} of {} experts in {} of {} groups: expected as many experts or more, "
                    "in groups of equal size of at least two",
                    op, options.topk, E, options.topk_groups, options.groups));
  }
}

RouteJob job_of(const at::Tensor& logits, const RouterOptions& options, const char* op) {
  check_floats(logits, logits.sizes(), op, "logits");
  const int64_t E = logits.size(1);
  RouteJob job;
  job.experts = E, job.topk = options.topk, job.groups = options.groups, job.topk_groups = options.topk_groups;
  job.scoring = static_cast<int>(options.scoring);
  job.normalise = options.normalise;
  job.scale = static_cast<float>(options.scale);
  job.logits = logits.const_data_ptr<float>();
  return job;
}

template <class Body>
void for_rows(int64_t rows, int64_t columns, const Body& body) {
#pragma omp parallel for schedule(static) if (rows * columns >= static_cast <int64_t>(kParallelElements) / 4)
  for (int64_t n = 0; n < rows; n += kRows) body(n, std::min(n + kRows, rows));
}

}  // namespace

Routing route(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  check_options(logits, options, "route");
  if (cuda::available(logits)) return cuda::table()->route(logits, bias, options);
  RouteJob job = job_of(logits, options, "route");
  const int64_t N = logits.size(0), E = logits.size(1), k = options.topk;
  if (bias.defined()) check_floats(bias, {E}, "route", "bias");
  Routing out{at::empty({N, k}, logits.options().dtype(at::kInt)), at::empty({N, k}, logits.options()),
              at::empty({N, E}, logits.options()), at::empty({N}, logits.options()), at::empty({N}, logits.options())};
  job.bias = floats_or_null(bias);
  job.chosen = out.experts.mutable_data_ptr<int32_t>();
  job.weights = out.weights.mutable_data_ptr<float>();
  job.scores = out.scores.mutable_data_ptr<float>();
  job.lse = out.lse.mutable_data_ptr<float>();
  job.entropy = out.entropy.mutable_data_ptr<float>();
  for_rows(N, E, [&](int64_t begin, int64_t end) { route_rows(job, begin, end); });
  return out;
}

at::Tensor route_backward(const at::Tensor& dweights, const at::Tensor& logits, const Routing& routing,
                          const RouterOptions& options, const RouterAux& aux) {
  const char* op = "route_backward";
  check_options(logits, options, op);
  if (cuda::available(logits)) return cuda::table()->route_backward(dweights, logits, routing, options, aux);
  RouteJob job = job_of(logits, options, op);
  const int64_t N = logits.size(0), E = logits.size(1);
  check_floats(dweights, {N, options.topk}, op, "dweights");
  check_floats(routing.scores, {N, E}, op, "scores");
  const at::Tensor dlogits = at::empty({N, E}, logits.options());
  job.chosen = routing.experts.mutable_data_ptr<int32_t>();
  job.weights = routing.weights.mutable_data_ptr<float>();
  job.scores = routing.scores.mutable_data_ptr<float>();
  job.lse = routing.lse.mutable_data_ptr<float>();
  job.dweights = dweights.const_data_ptr<float>();
  if (aux.balance.defined()) {
    const int64_t sequences = aux.balance.size(0);
    check_floats(aux.balance, {sequences, E}, op, "balance");
    if (sequences < 1 || N % sequences != 0)
      throw std::invalid_argument(fmt::format("[{}] balance: {} rows for {} tokens", op, sequences, N));
    job.balance = aux.balance.const_data_ptr<float>();
    job.sequence_rows = N / sequences;
  }
  job.z = static_cast<float>(aux.z);
  job.dlogits = dlogits.mutable_data_ptr<float>();
  for_rows(N, E, [&](int64_t begin, int64_t end) { route_rows_backward(job, begin, end); });
  return dlogits;
}

}  // namespace cairn::kernels
