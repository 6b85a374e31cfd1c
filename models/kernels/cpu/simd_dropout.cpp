#include "models/kernels/cpu/simd_dropout.h"

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_dropout.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/philox16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

void DropoutRows(const Dropout& job) {
  const uint64_t key = PhiloxKey(job.seed, Purpose::dropout);
  const size_t columns = job.columns;
#pragma omp parallel for schedule(static) if (job.rows * columns >= kParallelElements / 4)
  for (size_t n = 0; n < job.rows; ++n) {
    const float* x = job.x + n * columns;
    float* y = job.y + n * columns;
    for (size_t begin = 0; begin < columns; begin += 64) {
      W16 words[4];
      Philox16(key, job.stream, (job.first_row + n) << 32 | (begin / 4), words);
      for (size_t w = 0; w < 4 && begin + w * kLanes < columns; ++w) {
        const size_t i = begin + w * kLanes;
        const F16 factor = KeepFactor(words[w], job.threshold, job.kept);
        if (columns - i >= kLanes)
          Store(Load(x + i) * factor, y + i);
        else
          Store(Load(x + i, First{columns - i}) * factor, y + i, First{columns - i});
      }
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(DropoutRows);
void simd_dropout(const Dropout& job) { HWY_DYNAMIC_DISPATCH(DropoutRows)(job); }
}  // namespace cairn::kernels
#endif
