#include "models/kernels/cpu/simd_cross_entropy.h"

#include <cmath>

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_cross_entropy.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// A row is read in blocks that stay in the first-level cache, each with its own maximum, so that one exponential an
// element is enough: e^(x - block maximum) is written in place and rescaled when the maximum of the row is known.
constexpr size_t kMaxBlocks = 128;
HWY_INLINE size_t BlockColumns(size_t columns) {
  const size_t even = (columns + kMaxBlocks * kLanes - 1) / (kMaxBlocks * kLanes) * kLanes;
  return even > 2048 ? even : 2048;
}

HWY_INLINE float Exp1(float x) {
  alignas(64) float lane[kLanes];
  Store(Exp(Set(x)), lane);
  return lane[0];
}

// NOTE: a probability below this fraction of the largest gets no gradient. It is far below what float32 resolves, and
// denormal numbers would slow the products that follow forty-fold.
constexpr float kNegligible = 1e-24f;
constexpr float kLowest = -3.4028234663852886e38f;  // a finite start: a block of -inf alone then gives zeros, not NaN

HWY_INLINE float LargestOf(const float* x, size_t n) {
  F16 largest = Set(kLowest);
  const F16 fill = largest;
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA { largest = Max(largest, Load(x + i, part, fill)); });
  return ReduceMax(largest);
}

template <bool kTransform, bool kGradients, bool kCap>
HWY_INLINE void CrossEntropyRow(const CrossEntropyRows& job, size_t r) {
  const size_t columns = job.columns, block = BlockColumns(columns), target = static_cast<size_t>(job.targets[r]);
  float* x = job.logits + r * columns;
  float maximum[kMaxBlocks], sum[kMaxBlocks];
  float target_logit = 0;
  bool correct = true;

  size_t blocks = 0;
  for (size_t begin = 0; begin < columns; begin += block, ++blocks) {
    const size_t n = columns - begin < block ? columns - begin : block;
    float* b = x + begin;
    if (kTransform) {
      const float* bias = job.bias ? job.bias + begin : nullptr;
      const F16 k = Set(job.logit_scale), cap = Set(job.softcap), inverse_cap = Set(kCap ? 1.0f / job.softcap : 0.0f);
      ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA {
        F16 a = Load(b + i, part);
        if (bias) a = a + Load(bias + i, part);
        a = a * k;
        if (kCap) a = cap * Tanh(a * inverse_cap);
        Store(a, b + i, part);
      });
    }
    const float m = LargestOf(b, n);
    if (target >= begin && target < begin + n) {
      target_logit = x[target];
      correct = target_logit == m && (target == begin || LargestOf(b, target - begin) < m);
    }
    maximum[blocks] = m;
    F16 total = Zero();
    const F16 shift = Set(m), lowest = Set(kLowest);
    ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 e = Exp(Load(b + i, part, lowest) - shift);
      total = total + e;
      if (kGradients && !kCap) Store(e, b + i, part);
    });
    sum[blocks] = ReduceSum(total);
  }

  float m = kLowest;
  for (size_t i = 0; i < blocks; ++i) {
    m = maximum[i] > m ? maximum[i] : m;
    const bool before = (i + 1) * block <= target;
    if (before ? maximum[i] >= target_logit : maximum[i] > target_logit) correct = false;
  }
  double z = 0;
  for (size_t i = 0; i < blocks; ++i) {
    maximum[i] = Exp1(maximum[i] - m);  // from here on the factor of the block
    z += static_cast<double>(sum[i]) * maximum[i];
  }
  const double lse = m + std::log(z);
  job.lse[r] = lse;
  job.nll[r] = lse - target_logit;
  job.correct[r] = correct;
  if (!kGradients) return;

  // d/dlogit of scale * (nll + z_loss * lse^2) = scale * (p * (1 + 2 z_loss lse) - [target]), then through the
  // transform.
  const float one_hot = job.scale * job.logit_scale;
  const double coefficient = one_hot * (1 + 2.0 * job.z_loss * lse) / z;
  if (kCap) {
    const F16 k = Set(static_cast<float>(coefficient)), shift = Set(m), one = Set(1.0f),
              inverse_cap = Set(1.0f / job.softcap);
    ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Load(x + i, part), u = a * inverse_cap;
      Store(Exp(a - shift) * k * NegMulAdd(u, u, one), x + i, part);
    });
    const float u = target_logit * (1.0f / job.softcap);
    x[target] -= one_hot * (1.0f - u * u);
    return;
  }
  for (size_t i = 0; i < blocks; ++i) {
    const size_t begin = i * block, n = columns - begin < block ? columns - begin : block;
    float* b = x + begin;
    const F16 k = Set(static_cast<float>(coefficient * maximum[i])), floor = Set(kNegligible / maximum[i]);
    ForColumns(n, [&](size_t j, auto part) CAIRN_LAMBDA {
      const F16 e = Load(b + j, part);
      Store(IfThenElseZero(Ge(e, floor), e) * k, b + j, part);  // NaN comes back through k
    });
  }
  x[target] -= one_hot;
}

template <bool kTransform, bool kGradients, bool kCap>
void CrossEntropyLoop(const CrossEntropyRows& job) {
#pragma omp parallel for schedule(static) if (job.rows * job.columns >= kParallelElements / 4)
  for (size_t r = 0; r < job.rows; ++r) CrossEntropyRow<kTransform, kGradients, kCap>(job, r);
}

void CrossEntropy(const CrossEntropyRows& job) {
  const bool transform = job.bias || job.logit_scale != 1 || job.softcap > 0;
  if (job.softcap > 0) {
    job.gradients ? CrossEntropyLoop<true, true, true>(job) : CrossEntropyLoop<true, false, true>(job);
  } else if (transform) {
    job.gradients ? CrossEntropyLoop<true, true, false>(job) : CrossEntropyLoop<true, false, false>(job);
  } else {
    job.gradients ? CrossEntropyLoop<false, true, false>(job) : CrossEntropyLoop<false, false, false>(job);
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(CrossEntropy);
void simd_cross_entropy(const CrossEntropyRows& job) { HWY_DYNAMIC_DISPATCH(CrossEntropy)(job); }
}  // namespace cairn::kernels
#endif
