#include "models/kernels/cpu/simd_embedding.h"

#include <omp.h>

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_embedding.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

void GatherRows(const float* weight, const int32_t* ids, size_t rows, size_t columns, float scale, float* out) {
  const F16 k = Set(scale);
#pragma omp parallel for schedule(static) if (rows * columns >= kParallelElements)
  for (size_t n = 0; n < rows; ++n) {
    const float* from = weight + static_cast<size_t>(ids[n]) * columns;
    float* to = out + n * columns;
    ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA { Store(Load(from + i, part) * k, to + i, part); });
  }
}

void ScatterAddRows(const float* from, const int32_t* ids, size_t rows, size_t columns, float scale, float* to) {
  const F16 k = Set(scale);
  const bool parallel = rows * columns >= kParallelElements;
  const size_t threads = parallel ? static_cast<size_t>(omp_get_max_threads()) : 1;
  const size_t width = (columns + threads * kLanes - 1) / (threads * kLanes) * kLanes;  // does not touch the bits
  const size_t blocks = width == 0 ? 0 : (columns + width - 1) / width;
#pragma omp parallel for schedule(static) if (parallel)
  for (size_t block = 0; block < blocks; ++block) {
    const size_t begin = block * width, count = columns - begin < width ? columns - begin : width;
    for (size_t n = 0; n < rows; ++n) {
      const float* x = from + n * columns + begin;
      float* sum = to + static_cast<size_t>(ids[n]) * columns + begin;
      ForColumns(count, [&](size_t i, auto part)
                            CAIRN_LAMBDA { Store(MulAdd(Load(x + i, part), k, Load(sum + i, part)), sum + i, part); });
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(GatherRows);
HWY_EXPORT(ScatterAddRows);

void simd_gather_rows(const float* weight, const int32_t* ids, size_t rows, size_t columns, float scale, float* out) {
  HWY_DYNAMIC_DISPATCH(GatherRows)(weight, ids, rows, columns, scale, out);
}
void simd_scatter_add_rows(const float* from, const int32_t* ids, size_t rows, size_t columns, float scale, float* to) {
  HWY_DYNAMIC_DISPATCH(ScatterAddRows)(from, ids, rows, columns, scale, to);
}
}  // namespace cairn::kernels
#endif
