#include "models/kernels/cpu/simd_linear.h"

#include <algorithm>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_linear.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/reduce_four.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

struct FewRows {
  const float* x;
  int64_t rows, in;
  const float* weight;
  int64_t weight_stride;
  const float* bias;
  float* y;
  int64_t y_stride;
};

constexpr int kStripRows = 4;  // weight rows that are read side by side
constexpr int kMostRows = kParts == 1 ? 4 : 2;

// Weight rows [out, out + kOut) against rows [row, row + kRows) of x, all sums in registers. Fetches the same weight
// rows of the next strip meanwhile, those whose number is `turn` modulo `turns`: otherwise memory would rest in all
// turns but the first.
template <int kRows, int kOut>
HWY_INLINE void Dots(const FewRows& f, int64_t row, int64_t out, int turn, int turns) {
  const float* HWY_RESTRICT w = f.weight + out * f.weight_stride;
  const float* HWY_RESTRICT x = f.x + row * f.in;
  F16 sum[kRows][kOut];
  for (auto& line : sum)
    for (auto& s : line) s = Zero();
  bool fetch[kOut];
  for (int o = 0; o < kOut; ++o) fetch[o] = o % turns == turn;
  ForColumns(f.in, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 a[kRows];
#pragma GCC unroll 8
    for (int n = 0; n < kRows; ++n) a[n] = Load(x + n * f.in + i, part);
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      const float* from = w + o * f.weight_stride + i;
      if (fetch[o]) __builtin_prefetch(from + kStripRows * f.weight_stride, 0, 2);
      const F16 b = Load(from, part);
#pragma GCC unroll 8
      for (int n = 0; n < kRows; ++n) sum[n][o] = MulAdd(a[n], b, sum[n][o]);
    }
  });
  for (int n = 0; n < kRows; ++n) {
    float dot[4];
    const auto at = [&](int o) { return sum[n][o < kOut ? o : 0]; };
    hn::StoreU(SumFour(at(0), at(1), at(2), at(3)), hn::FixedTag<float, 4>(), dot);
    for (int o = 0; o < kOut; ++o)
      f.y[(row + n) * f.y_stride + out + o] = f.bias != nullptr ? dot[o] + f.bias[out + o] : dot[o];
  }
}

// All rows of x against kOut weight rows, which stay in the first cache between the turns.
template <int kOut>
HWY_INLINE void AllRows(const FewRows& f, int64_t out) {
  const int turns = static_cast<int>(f.rows / kMostRows) + (f.rows % kMostRows >= 2) + f.rows % 2;
  int turn = 0;
  int64_t row = 0;
  for (; row + kMostRows <= f.rows; row += kMostRows) Dots<kMostRows, kOut>(f, row, out, turn++, turns);
  if (row + 2 <= f.rows) Dots<2, kOut>(f, row, out, turn++, turns), row += 2;
  if (row < f.rows) Dots<1, kOut>(f, row, out, turn, turns);
}

void FewRowsRun(const float* x, int64_t rows, int64_t in, const float* weight, int64_t weight_stride, const float* bias,
                float* y, int64_t y_stride, int64_t begin, int64_t end) {
  const FewRows f{x, rows, in, weight, weight_stride, bias, y, y_stride};
  constexpr int kOut = kParts == 1 ? 4 : 2;  // with kMostRows: as many sums as there are registers for
  int64_t out = begin;
  for (; out + kStripRows <= end; out += kStripRows) {
    if (rows == 1) {
      Dots<1, kStripRows>(f, 0, out, 0, 1);
    } else {
      for (int o = 0; o < kStripRows; o += kOut) AllRows<kOut>(f, out + o);
    }
  }
  for (; out < end; ++out) AllRows<1>(f, out);
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
