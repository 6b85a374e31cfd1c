// Products with rows that a list names, once for every target. Rows are padded with zeros to multiples of 16 floats.
// The bits of a result depend on its own row and list alone: a dot product is 16 sums over the features, folded; a sum
// over the list is four chains (entry i goes to chain i % 4) for every 64 entries, joined and added up in order.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_GATHER_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_GATHER_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_GATHER_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_GATHER_INL_H
#endif

#include "models/kernels/cpu/reduce_four.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr int64_t kListTile = 64;  // entries that are summed apart; part of the numbers

struct Listed {
  const float* rows;
  int64_t stride;
  const int32_t* index;
  int64_t count;

  HWY_INLINE const float* row(int64_t i) const { return rows + index[i] * stride; }
};

// dots[r * ld + i] = a[r] . row(i); kRows rows of a. Writes up to three floats after the last.
template <size_t kRows>
HWY_INLINE void DotRows(const float* HWY_RESTRICT a, int64_t lda, const Listed& b, int64_t dim,
                        float* HWY_RESTRICT dots, int64_t ld) {
  for (int64_t i = 0; i < b.count; i += 4) {
    const int64_t last = b.count - 1;
    const float* HWY_RESTRICT b0 = b.row(i);
    const float* HWY_RESTRICT b1 = b.row(std::min(i + 1, last));
    const float* HWY_RESTRICT b2 = b.row(std::min(i + 2, last));
    const float* HWY_RESTRICT b3 = b.row(std::min(i + 3, last));
    F16 sum[kRows][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = Zero();
    for (int64_t c = 0; c < dim; c += kLanes) {
      const F16 v0 = Load(b0 + c), v1 = Load(b1 + c), v2 = Load(b2 + c), v3 = Load(b3 + c);
#pragma GCC unroll 4
      for (size_t r = 0; r < kRows; ++r) {
        const F16 av = Load(a + r * lda + c);
        sum[r][0] = MulAdd(av, v0, sum[r][0]);
        sum[r][1] = MulAdd(av, v1, sum[r][1]);
        sum[r][2] = MulAdd(av, v2, sum[r][2]);
        sum[r][3] = MulAdd(av, v3, sum[r][3]);
      }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r)
      hn::StoreU(SumFour(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), hn::FixedTag<float, 4>(), dots + r * ld + i);
  }
}

// All rows of a; four at a time where the registers hold the sums.
HWY_INLINE void Dots(const float* a, int64_t lda, int64_t rows, const Listed& b, int64_t dim, float* dots, int64_t ld) {
  int64_t r = 0;
  if constexpr (kParts == 1) {
    for (; r + 4 <= rows; r += 4) DotRows<4>(a + r * lda, lda, b, dim, dots + r * ld, ld);
    if (r + 2 <= rows) DotRows<2>(a + r * lda, lda, b, dim, dots + r * ld, ld), r += 2;
  }
  for (; r < rows; ++r) DotRows<1>(a + r * lda, lda, b, dim, dots + r * ld, ld);
}

constexpr size_t kSumColumns = kParts == 1 ? 4 : 1;  // vectors of a row whose four chains are in registers

// to[c] += sum over a tile's list of p[i] * row(i)[c], kColumns vectors of it.
template <size_t kColumns>
HWY_INLINE void SumColumns(const float* HWY_RESTRICT p, const Listed& b, int64_t column, float* HWY_RESTRICT to) {
  F16 sum[4][kColumns];
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j)
#pragma GCC unroll 4
    for (size_t n = 0; n < kColumns; ++n) sum[j][n] = Zero();
  int64_t i = 0;
  for (; i + 4 <= b.count; i += 4) {
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      const float* HWY_RESTRICT from = b.row(i + j) + column;
      const F16 weight = Set(p[i + j]);
#pragma GCC unroll 4
      for (size_t n = 0; n < kColumns; ++n) sum[j][n] = MulAdd(weight, Load(from + n * kLanes), sum[j][n]);
    }
  }
  for (size_t j = 0; i < b.count; ++i, ++j) {
    const float* from = b.row(i) + column;
    const F16 weight = Set(p[i]);
#pragma GCC unroll 4
    for (size_t n = 0; n < kColumns; ++n) {
      const F16 x = Load(from + n * kLanes);
      if (j == 0) sum[0][n] = MulAdd(weight, x, sum[0][n]);
      if (j == 1) sum[1][n] = MulAdd(weight, x, sum[1][n]);
      if (j == 2) sum[2][n] = MulAdd(weight, x, sum[2][n]);
    }
  }
#pragma GCC unroll 4
  for (size_t n = 0; n < kColumns; ++n) {
    float* at = to + column + n * kLanes;
    Store(Load(at) + ((sum[0][n] + sum[1][n]) + (sum[2][n] + sum[3][n])), at);
  }
}

// to[r] += sum over the list (at most kListTile entries) of p[r * ldp + i] * row(i); rows of `to` at ldt.
HWY_INLINE void AddWeighted(const float* p, int64_t ldp, int64_t rows, const Listed& b, int64_t dim, float* to,
                            int64_t ldt) {
  const int64_t vectors = dim / kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t done = 0;
    while (done < vectors) {
      const int64_t left = vectors - done, panels = (left + kSumColumns - 1) / kSumColumns;
      const int64_t take = (left + panels - 1) / panels, column = done * kLanes;
      const float* weights = p + r * ldp;
      float* sums = to + r * ldt;
      if constexpr (kParts == 1) {
        if (take == 4) SumColumns<4>(weights, b, column, sums);
        if (take == 3) SumColumns<3>(weights, b, column, sums);
        if (take == 2) SumColumns<2>(weights, b, column, sums);
      }
      if (take == 1) SumColumns<1>(weights, b, column, sums);
      done += take;
    }
  }
}

// to.row(i)[c] += sum over r, in order, of p[r * ldp + i] * a[r * lda + c]; `to` as a list of rows that are written.
template <size_t kColumns>
HWY_INLINE void ScatterColumns(const float* HWY_RESTRICT p, int64_t ldp, int64_t rows, const float* HWY_RESTRICT a,
                               int64_t lda, int64_t column, const Listed& list, float* HWY_RESTRICT to) {
  if (rows == 1) {
    F16 x[kColumns];
#pragma GCC unroll 4
    for (size_t n = 0; n < kColumns; ++n) x[n] = Load(a + column + n * kLanes);
    for (int64_t i = 0; i < list.count; ++i) {
      float* HWY_RESTRICT at = to + list.index[i] * list.stride + column;
      const F16 weight = Set(p[i]);
#pragma GCC unroll 4
      for (size_t n = 0; n < kColumns; ++n) Store(MulAdd(weight, x[n], Load(at + n * kLanes)), at + n * kLanes);
    }
    return;
  }
  for (int64_t i = 0; i < list.count; ++i) {
    float* HWY_RESTRICT at = to + list.index[i] * list.stride + column;
    F16 sum[kColumns];
#pragma GCC unroll 4
    for (size_t n = 0; n < kColumns; ++n) sum[n] = Load(at + n * kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      const F16 weight = Set(p[r * ldp + i]);
      const float* HWY_RESTRICT x = a + r * lda + column;
#pragma GCC unroll 4
      for (size_t n = 0; n < kColumns; ++n) sum[n] = MulAdd(weight, Load(x + n * kLanes), sum[n]);
    }
#pragma GCC unroll 4
    for (size_t n = 0; n < kColumns; ++n) Store(sum[n], at + n * kLanes);
  }
}

// `list.rows` is not read: `to` has the rows of list.index at list.stride.
HWY_INLINE void Scatter(const float* p, int64_t ldp, int64_t rows, const float* a, int64_t lda, int64_t dim,
                        const Listed& list, float* to) {
  int64_t column = 0;
  for (; column + 4 * static_cast<int64_t>(kLanes) <= dim; column += 4 * kLanes)
    ScatterColumns<4>(p, ldp, rows, a, lda, column, list, to);
  const int64_t left = (dim - column) / static_cast<int64_t>(kLanes);
  if (left == 3) ScatterColumns<3>(p, ldp, rows, a, lda, column, list, to);
  if (left == 2) ScatterColumns<2>(p, ldp, rows, a, lda, column, list, to);
  if (left == 1) ScatterColumns<1>(p, ldp, rows, a, lda, column, list, to);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
