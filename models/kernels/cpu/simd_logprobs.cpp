#include "models/kernels/cpu/simd_logprobs.h"

#include <cmath>

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_logprobs.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr size_t kBlock = 2048;        // columns whose sum is taken in float32; blocks add up in double
constexpr float kNegligible = 1e-24f;  // a smaller probability has no gradient: denormal numbers are slow
constexpr float kLowest = -3.4028234663852886e38f;

// logits -> softcap * tanh((logits + bias) / softcap) / temperature, in place.
HWY_INLINE void TransformRow(const LogprobRows& job, float* x) {
  const bool cap = job.softcap > 0;
  if (!job.bias && !cap && job.temperature == 1) return;
  const F16 size = Set(job.softcap), inverse = Set(cap ? 1.0f / job.softcap : 0.0f), cold = Set(1.0f / job.temperature);
  ForColumns(job.columns, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 a = Load(x + i, part);
    if (job.bias) a = a + Load(job.bias + i, part);
    if (cap) a = size * Tanh(a * inverse);
    Store(a * cold, x + i, part);
  });
}

HWY_INLINE void LogprobRow(const LogprobRows& job, size_t r) {
  float* x = job.logits + r * job.columns;
  TransformRow(job, x);
  F16 most = Set(kLowest);
  const F16 lowest = most;
  ForColumns(job.columns, [&](size_t i, auto part) CAIRN_LAMBDA { most = Max(most, Load(x + i, part, lowest)); });
  const float m = ReduceMax(most);
  double z = 0, s = 0;  // sums of e^(x - m) and of e^(x - m) (x - m)
  const F16 shift = Set(m);
  for (size_t begin = 0; begin < job.columns; begin += kBlock) {
    const size_t n = job.columns - begin < kBlock ? job.columns - begin : kBlock;
    F16 total = Zero(), weighted = Zero();
    ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Max(Set(-1e30f), Load(x + begin + i, part, lowest) - shift), e = Exp(a);
      total = total + e;
      weighted = MulAdd(e, a, weighted);
    });
    z += ReduceSum(total), s += ReduceSum(weighted);
  }
  const double log_z = std::log(z);
  job.lse[r] = static_cast<float>(m + log_z);
  job.logprobs[r] = static_cast<float>(static_cast<double>(x[job.targets[r]]) - m - log_z);
  if (job.entropy) job.entropy[r] = static_cast<float>(log_z - s / z);
}

// d logprob / d x_j = [j = target] - p_j; d entropy / d x_j = -p_j (log p_j + entropy); then through the transform.
template <bool kEntropy>
HWY_INLINE void GradientRow(const LogprobGradientRows& job, size_t r) {
  const LogprobRows& row = job.forward;
  float* x = row.logits + r * row.columns;
  TransformRow(row, x);
  const size_t target = static_cast<size_t>(row.targets[r]);
  const bool cap = row.softcap > 0;
  const float cold = 1.0f / row.temperature, inner = cap ? row.temperature / row.softcap : 0.0f;
  const float u = x[target] * inner, of_target = job.dlogprobs[r] * cold * (1.0f - u * u);
  const F16 lse = Set(row.lse[r]), k = Set(-job.dlogprobs[r] * cold), one = Set(1.0f), slope = Set(inner),
            floor = Set(kNegligible);
  const F16 ke = Set(kEntropy ? -job.dentropy[r] * cold : 0.0f), entropy = Set(kEntropy ? row.entropy[r] : 0.0f);
  ForColumns(row.columns, [&](size_t i, auto part) CAIRN_LAMBDA {
    const F16 a = Load(x + i, part), log_p = a - lse, e = Exp(log_p);
    F16 factor = k;
    if (kEntropy) factor = MulAdd(ke, Max(Set(-1e30f), log_p) + entropy, factor);
    F16 g = IfThenElseZero(Ge(e, floor), e) * factor;
    if (cap) {
      const F16 t = a * slope;
      g = g * NegMulAdd(t, t, one);
    }
    Store(g, x + i, part);
  });
  x[target] += of_target;
}

void LogprobsForward(const LogprobRows& job) {
#pragma omp parallel for schedule(static) if (job.rows * job.columns >= kParallelElements / 4)
  for (size_t r = 0; r < job.rows; ++r) LogprobRow(job, r);
}

void LogprobsBackward(const LogprobGradientRows& job) {
  const LogprobRows& rows = job.forward;
#pragma omp parallel for schedule(static) if (rows.rows * rows.columns >= kParallelElements / 4)
  for (size_t r = 0; r < rows.rows; ++r) {
    if (job.dentropy) {
      GradientRow<true>(job, r);
    } else {
      GradientRow<false>(job, r);
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(LogprobsForward);
void simd_logprobs(const LogprobRows& job) { HWY_DYNAMIC_DISPATCH(LogprobsForward)(job); }
HWY_EXPORT(LogprobsBackward);
void simd_logprobs_backward(const LogprobGradientRows& job) { HWY_DYNAMIC_DISPATCH(LogprobsBackward)(job); }
}  // namespace cairn::kernels
#endif
