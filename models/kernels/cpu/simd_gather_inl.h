// Products with rows that a list names, once for every target. The loops stand on their own (not inlined), so that
// their sums do not share the registers with what stands around them. Rows are padded with zeros to multiples of 16
// floats. The bits of a result depend on its own row and list alone: a dot product is 16 sums over the features,
// folded; a sum over the list is four chains (entry i goes to chain i % 4) for every 64 entries, joined and added up in
// order.

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

// Sixteen sums at once, each with the bits of ReduceSum: to[i] = ReduceSum(sum[Place(i)]).
constexpr size_t Place(size_t i) { return kParts == 1 ? i / 4 + 4 * (i % 4) : i; }
#if HWY_TARGET == HWY_AVX3
HWY_INLINE void SumSixteen(const F16* sum, float* to) {
  __m512 a[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {  // lane i with i + 8
    const __m512 x = sum[2 * i].v[0].raw, y = sum[2 * i + 1].v[0].raw;
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i)  // with i + 4: a block of four lanes is a sum
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
#pragma GCC unroll 2
  for (size_t i = 0; i < 2; ++i)  // with i + 2
    a[i] =
        _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));
  _mm512_storeu_ps(to, _mm512_add_ps(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xDD)));
}
#else
HWY_INLINE void SumSixteen(const F16* sum, float* to) {
  for (size_t i = 0; i < 16; i += 4)
    hn::StoreU(SumFour(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]), hn::FixedTag<float, 4>(), to + i);
}
#endif

// Sums of one row `a` of kColumns vectors with one listed row.
template <size_t kColumns>
HWY_INLINE F16 DotColumns(const F16* a, const float* HWY_RESTRICT b, F16 sum) {
#pragma GCC unroll 8
  for (size_t c = 0; c < kColumns; ++c) sum = MulAdd(a[c], Load(b + c * kLanes), sum);
  return sum;
}

// dots[i] = a . row(i), sixteen at a time; writes up to fifteen floats after the last. kColumns vectors, or as many as
// `dim` has where kColumns is 0.
template <size_t kColumns>
HWY_NOINLINE void DotRow(const float* HWY_RESTRICT a, const Listed& b, int64_t dim, float* HWY_RESTRICT dots) {
  if constexpr (kParts == 1) {
    F16 row[kColumns > 0 ? kColumns : 1];
#pragma GCC unroll 8
    for (size_t c = 0; c < kColumns; ++c) row[c] = Load(a + c * kLanes);
    for (int64_t i = 0; i < b.count; i += 16) {
      const int32_t* index = b.index + i;
      int32_t padded[16];
      if (b.count - i < 16) {  // the last one stands in for what is not there
        for (int64_t j = 0; j < 16; ++j) padded[j] = b.index[std::min(i + j, b.count - 1)];
        index = padded;
      }
      F16 sum[16];
      if constexpr (kColumns > 0) {
#pragma GCC unroll 16
        for (size_t j = 0; j < 16; ++j) sum[Place(j)] = DotColumns<kColumns>(row, b.rows + index[j] * b.stride, Zero());
      } else {
        for (size_t j = 0; j < 16; ++j) {
          const float* HWY_RESTRICT from = b.rows + index[j] * b.stride;
          F16 s = Zero();
          for (int64_t c = 0; c < dim; c += kLanes) s = MulAdd(Load(a + c), Load(from + c), s);
          sum[Place(j)] = s;
        }
      }
      SumSixteen(sum, dots + i);
    }
  } else {
    for (int64_t i = 0; i < b.count; i += 4) {
      const int64_t last = b.count - 1;
      const float *b0 = b.row(i), *b1 = b.row(std::min(i + 1, last)), *b2 = b.row(std::min(i + 2, last)),
                  *b3 = b.row(std::min(i + 3, last));
      F16 s0 = Zero(), s1 = Zero(), s2 = Zero(), s3 = Zero();
      for (int64_t c = 0; c < dim; c += kLanes) {
        const F16 av = Load(a + c);
        s0 = MulAdd(av, Load(b0 + c), s0);
        s1 = MulAdd(av, Load(b1 + c), s1);
        s2 = MulAdd(av, Load(b2 + c), s2);
        s3 = MulAdd(av, Load(b3 + c), s3);
      }
      hn::StoreU(SumFour(s0, s1, s2, s3), hn::FixedTag<float, 4>(), dots + i);
    }
  }
}

// dots[r * ld + i] = a[r] . row(i), four rows of a and four listed rows at a time.
static HWY_NOINLINE void DotFourRows(const float* HWY_RESTRICT a, int64_t lda, const Listed& b, int64_t dim,
                                     float* HWY_RESTRICT dots, int64_t ld) {
  for (int64_t i = 0; i < b.count; i += 4) {
    const int64_t last = b.count - 1;
    const float* HWY_RESTRICT b0 = b.row(i);
    const float* HWY_RESTRICT b1 = b.row(std::min(i + 1, last));
    const float* HWY_RESTRICT b2 = b.row(std::min(i + 2, last));
    const float* HWY_RESTRICT b3 = b.row(std::min(i + 3, last));
    F16 sum[16];  // row r, listed row j at Place(4 * r + j)
#pragma GCC unroll 16
    for (size_t j = 0; j < 16; ++j) sum[j] = Zero();
    for (int64_t c = 0; c < dim; c += kLanes) {
      const F16 v0 = Load(b0 + c), v1 = Load(b1 + c), v2 = Load(b2 + c), v3 = Load(b3 + c);
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) {
        const F16 av = Load(a + r * lda + c);
        sum[Place(4 * r)] = MulAdd(av, v0, sum[Place(4 * r)]);
        sum[Place(4 * r + 1)] = MulAdd(av, v1, sum[Place(4 * r + 1)]);
        sum[Place(4 * r + 2)] = MulAdd(av, v2, sum[Place(4 * r + 2)]);
        sum[Place(4 * r + 3)] = MulAdd(av, v3, sum[Place(4 * r + 3)]);
      }
    }
    alignas(64) float out[16];
    SumSixteen(sum, out);
    const hn::FixedTag<float, 4> d;
    for (size_t r = 0; r < 4; ++r) hn::StoreU(hn::Load(d, out + 4 * r), d, dots + r * ld + i);
  }
}

// All rows of a; rows of dots have room for fifteen floats more than the list has entries.
HWY_INLINE void Dots(const float* a, int64_t lda, int64_t rows, const Listed& b, int64_t dim, float* dots, int64_t ld) {
  int64_t r = 0;
  if constexpr (kParts == 1)
    for (; r + 4 <= rows; r += 4) DotFourRows(a + r * lda, lda, b, dim, dots + r * ld, ld);
  for (; r < rows; ++r) {
    const float* row = a + r * lda;
    float* to = dots + r * ld;
    switch (dim / static_cast<int64_t>(kLanes)) {
      case 1:
        DotRow<1>(row, b, dim, to);
        break;
      case 2:
        DotRow<2>(row, b, dim, to);
        break;
      case 3:
        DotRow<3>(row, b, dim, to);
        break;
      case 4:
        DotRow<4>(row, b, dim, to);
        break;
      case 5:
        DotRow<5>(row, b, dim, to);
        break;
      case 8:
        DotRow<8>(row, b, dim, to);
        break;
      default:
        DotRow<0>(row, b, dim, to);
    }
  }
}

constexpr size_t kSumColumns = kParts == 1 ? 4 : 1;  // vectors of a row whose four chains are in registers

// to[c] += sum over a tile's list of p[i] * row(i)[c], kColumns vectors of it.
template <size_t kColumns>
HWY_NOINLINE void SumColumns(const float* HWY_RESTRICT p, const Listed& b, int64_t column, float* HWY_RESTRICT to) {
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

// Two scatters into the same rows at once: to.row(i) += [p[i] * a[0, kFirst) | p2[i] * a[kFirst, kFirst + kSecond)], in
// vectors.
template <size_t kFirst, size_t kSecond>
HWY_NOINLINE void ScatterPair(const float* HWY_RESTRICT p, const float* HWY_RESTRICT p2, const float* HWY_RESTRICT a,
                              const Listed& list, float* HWY_RESTRICT to) {
  F16 x[kFirst + kSecond];
#pragma GCC unroll 8
  for (size_t n = 0; n < kFirst + kSecond; ++n) x[n] = Load(a + n * kLanes);
  const int32_t* HWY_RESTRICT index = list.index;
  const int64_t stride = list.stride, count = list.count;
  for (int64_t i = 0; i < count; ++i) {
    float* HWY_RESTRICT at = to + index[i] * stride;
    const F16 weight = Set(p[i]), weight2 = Set(p2[i]);
#pragma GCC unroll 8
    for (size_t n = 0; n < kFirst; ++n) Store(MulAdd(weight, x[n], Load(at + n * kLanes)), at + n * kLanes);
#pragma GCC unroll 8
    for (size_t n = kFirst; n < kFirst + kSecond; ++n)
      Store(MulAdd(weight2, x[n], Load(at + n * kLanes)), at + n * kLanes);
  }
}
// False where no loop was made for these widths.
HWY_INLINE bool ScatterBoth(const float* p, const float* p2, const float* a, int64_t first, int64_t second,
                            const Listed& list, float* to) {
  if constexpr (kParts > 1) return false;
  const int64_t lanes = kLanes;
  switch (first / lanes * 16 + second / lanes) {
    case 0x11:
      return ScatterPair<1, 1>(p, p2, a, list, to), true;
    case 0x21:
      return ScatterPair<2, 1>(p, p2, a, list, to), true;
    case 0x22:
      return ScatterPair<2, 2>(p, p2, a, list, to), true;
    case 0x32:
      return ScatterPair<3, 2>(p, p2, a, list, to), true;
    case 0x33:
      return ScatterPair<3, 3>(p, p2, a, list, to), true;
    case 0x44:
      return ScatterPair<4, 4>(p, p2, a, list, to), true;
    default:
      return false;
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
