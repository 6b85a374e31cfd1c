#include "models/kernels/cpu/simd_linear.h"

#include <algorithm>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_linear.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

struct FewRows {
  const float* x;
  int64_t in;
  const float* weight;
  int64_t weight_stride;
  const float* bias;
  float* y;
  int64_t y_stride;
};

// kOut rows of the weight against kRows rows of x, all sums in registers.
template <int kRows, int kOut>
HWY_INLINE void Dots(const FewRows& f, int64_t row, int64_t out) {
  const float* HWY_RESTRICT w = f.weight + out * f.weight_stride;
  const float* HWY_RESTRICT x = f.x + row * f.in;
  F16 sum[kRows][kOut];
  for (auto& line : sum)
    for (auto& s : line) s = Zero();
  ForColumns(f.in, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 a[kRows];
#pragma GCC unroll 8
    for (int n = 0; n < kRows; ++n) a[n] = Load(x + n * f.in + i, part);
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      const F16 b = Load(w + o * f.weight_stride + i, part);
#pragma GCC unroll 8
      for (int n = 0; n < kRows; ++n) sum[n][o] = MulAdd(a[n], b, sum[n][o]);
    }
  });
  for (int n = 0; n < kRows; ++n)
    for (int o = 0; o < kOut; ++o) {
      const float dot = ReduceSum(sum[n][o]);
      f.y[(row + n) * f.y_stride + out + o] = f.bias != nullptr ? dot + f.bias[out + o] : dot;
    }
}

template <int kRows>
HWY_INLINE void Strip(const FewRows& f, int64_t row, int64_t out, int64_t count) {
  if (count == 4) {
    Dots<kRows, 4>(f, row, out);
  } else {
    for (int64_t o = 0; o < count; ++o) Dots<kRows, 1>(f, row, out + o);
  }
}

void FewRowsRun(const float* x, int64_t rows, int64_t in, const float* weight, int64_t weight_stride, const float* bias,
                float* y, int64_t y_stride, int64_t begin, int64_t end) {
  const FewRows f{x, in, weight, weight_stride, bias, y, y_stride};
  for (int64_t out = begin; out < end; out += 4) {
    const int64_t count = std::min<int64_t>(4, end - out);
    // Rows of x in fours, twos, ones: the weight rows stay in the first cache between them.
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) Strip<4>(f, row, out, count);
    if (row + 2 <= rows) Strip<2>(f, row, out, count), row += 2;
    if (row < rows) Strip<1>(f, row, out, count);
  }
}

void ColumnSums(const float* dy, int64_t rows, int64_t stride, float* sum, int64_t begin, int64_t end) {
  constexpr int64_t kPiece = 64;
  for (int64_t first = 0; first < rows; first += kPiece) {
    const int64_t last = std::min(first + kPiece, rows);
    ForColumns(end - begin, [&](size_t i, auto part) CAIRN_LAMBDA {
      const int64_t c = begin + static_cast<int64_t>(i);
      F16 s = Load(dy + first * stride + c, part);
      for (int64_t r = first + 1; r < last; ++r) s = s + Load(dy + r * stride + c, part);
      Store(Load(sum + c, part) + s, sum + c, part);
    });
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(FewRowsRun);
HWY_EXPORT(ColumnSums);

void linear_few_rows(const float* x, int64_t rows, int64_t in, const float* weight, int64_t weight_stride,
                     const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(FewRowsRun)(x, rows, in, weight, weight_stride, bias, y, y_stride, begin, end);
}
void linear_column_sums(const float* dy, int64_t rows, int64_t stride, float* sum, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(ColumnSums)(dy, rows, stride, sum, begin, end);
}

}  // namespace cairn::kernels
#endif
