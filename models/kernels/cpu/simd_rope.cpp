#include "models/kernels/cpu/simd_rope.h"

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_rope.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// (a, b) -> (a cos - b sin, b cos + a sin)
HWY_INLINE void Rotate(F16& a, F16& b, F16 cos, F16 sin) {
  const F16 rotated = NegMulAdd(b, sin, a * cos);
  b = MulAdd(a, sin, b * cos);
  a = rotated;
}

HWY_INLINE void LoadPairs(const float* from, F16& a, F16& b) {
  CAIRN_PARTS hn::LoadInterleaved2(Tag(), from + 2 * p * kWidth, a.v[p], b.v[p]);
}
HWY_INLINE void StorePairs(F16 a, F16 b, float* to) {
  CAIRN_PARTS hn::StoreInterleaved2(a.v[p], b.v[p], Tag(), to + 2 * p * kWidth);
}

HWY_INLINE void HeadInHalves(float* x, size_t half, const float* cos, const float* sin, F16 sign) {
  ForColumns(half, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 a = Load(x + i, part), b = Load(x + half + i, part);
    Rotate(a, b, Load(cos + i, part), Load(sin + i, part) * sign);
    Store(a, x + i, part);
    Store(b, x + half + i, part);
  });
}

HWY_INLINE void HeadInterleaved(float* x, size_t half, const float* cos, const float* sin, F16 sign) {
  F16 a, b;
  size_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    LoadPairs(x + 2 * i, a, b);
    Rotate(a, b, Load(cos + i), Load(sin + i) * sign);
    StorePairs(a, b, x + 2 * i);
  }
  if (i == half) return;
  float rest[2 * kLanes] = {};
  std::copy(x + 2 * i, x + 2 * half, rest);
  LoadPairs(rest, a, b);
  Rotate(a, b, Load(cos + i, First{half - i}), Load(sin + i, First{half - i}) * sign);
  StorePairs(a, b, rest);
  std::copy(rest, rest + 2 * (half - i), x + 2 * i);
}

void RopeRows(const Rope& job) {
  const F16 sign = Set(job.inverse ? -1.0f : 1.0f);
#pragma omp parallel for schedule(static) if (job.rows * job.heads * job.half * 2 >= kParallelElements)
  for (size_t n = 0; n < job.rows; ++n) {
    const size_t at = static_cast<size_t>(job.positions[n]) * job.half;
    for (size_t h = 0; h < job.heads; ++h) {
      float* x = job.x + static_cast<ptrdiff_t>(n) * job.row_stride + static_cast<ptrdiff_t>(h) * job.head_stride;
      if (job.interleaved)
        HeadInterleaved(x, job.half, job.cos + at, job.sin + at, sign);
      else
        HeadInHalves(x, job.half, job.cos + at, job.sin + at, sign);
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(RopeRows);
void simd_rope(const Rope& job) { HWY_DYNAMIC_DISPATCH(RopeRows)(job); }
}  // namespace cairn::kernels
#endif
