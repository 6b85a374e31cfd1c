// Products, triangular solves and transposes of small tiles with any row stride, once for every target. Vectors run
// along the columns of the result: every element is one chain of fused multiply-adds over k in ascending order, so its
// bits depend on no blocking and on no vector width.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_TILES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_TILES_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_TILES_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_TILES_INL_H
#endif

#include <algorithm>
#include <cstdint>

#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {
namespace tiles {

enum class Put {
  set,      // C = AB
  add,      // C = C + AB, inside the chain
  scaled,   // C[r] = alpha[r] * AB[r]
  blended,  // C[r] = C[r] + alpha[r] * AB[r]
  decayed,  // C = decay * C + AB, inside the chain
};
enum class Lay { rows, columns };  // A[m][k] at a[m * lda + k] or at a[k * lda + m]

struct Product {
  const float* a;
  int64_t lda;
  const float* b;  // [K, N]
  int64_t ldb;
  float* c;  // [M, N]
  int64_t ldc;
  const float* alpha = nullptr;  // [M]
  float decay = 1;
};

// What a block of rows needs: columns [0, n1), rounded up to 16, and terms [k0, k1). Multiply asks range(row, count).
struct Range {
  int64_t n1, k0, k1;
};

constexpr int64_t kPanel = 64;  // columns of B that are kept close while the rows pass

template <size_t MR, size_t NV, Put kPut, Lay kLay>
HWY_INLINE void Block(const Product& p, int64_t row, int64_t column, int64_t k0, int64_t k1) {
  const Tag d;
  const int64_t row_step = kLay == Lay::rows ? p.lda : 1, k_step = kLay == Lay::rows ? 1 : p.lda;
  Vec acc[MR][NV];
  float* HWY_RESTRICT c = p.c + row * p.ldc + column;
#pragma GCC unroll 16
  for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) {
      if constexpr (kPut == Put::add) {
        acc[r][n] = hn::LoadU(d, c + r * p.ldc + n * kWidth);
      } else if constexpr (kPut == Put::decayed) {
        acc[r][n] = hn::Mul(hn::LoadU(d, c + r * p.ldc + n * kWidth), hn::Set(d, p.decay));
      } else {
        acc[r][n] = hn::Zero(d);
      }
    }
  }
  const float* HWY_RESTRICT a = p.a + row * row_step + k0 * k_step;
  const float* HWY_RESTRICT b = p.b + k0 * p.ldb + column;
  for (int64_t k = k0; k < k1; ++k, a += k_step, b += p.ldb) {
    Vec bv[NV];
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) bv[n] = hn::LoadU(d, b + n * kWidth);
#pragma GCC unroll 16
    for (size_t r = 0; r < MR; ++r) {
      const Vec av = hn::Set(d, a[r * row_step]);
#pragma GCC unroll 4
      for (size_t n = 0; n < NV; ++n) acc[r][n] = hn::MulAdd(av, bv[n], acc[r][n]);
    }
  }
#pragma GCC unroll 16
  for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) {
      float* to = c + r * p.ldc + n * kWidth;
      if constexpr (kPut == Put::scaled) acc[r][n] = hn::Mul(acc[r][n], hn::Set(d, p.alpha[row + r]));
      if constexpr (kPut == Put::blended)
        acc[r][n] = hn::MulAdd(acc[r][n], hn::Set(d, p.alpha[row + r]), hn::LoadU(d, to));
      hn::StoreU(acc[r][n], d, to);
    }
  }
}

// Registers: MR * NV sums, NV of B, one of A.
constexpr size_t kMaxVectors = kParts == 1 ? 4 : 2;

// body(column, std::integral_constant NV) over columns [begin, end) in strips of at most kMaxVectors vectors.
template <class Body>
HWY_INLINE void Strips(int64_t begin, int64_t end, const Body& body) {
  int64_t column = begin;
  for (int64_t left = (end - begin) / int64_t{kWidth}; left > 0;) {
    const int64_t panels = (left + int64_t{kMaxVectors} - 1) / int64_t{kMaxVectors},
                  take = (left + panels - 1) / panels;
    if constexpr (kParts == 1) {
      if (take == 4) body(column, std::integral_constant<size_t, 4>());
      if (take == 3) body(column, std::integral_constant<size_t, 3>());
    }
    if (take == 2) body(column, std::integral_constant<size_t, 2>());
    if (take == 1) body(column, std::integral_constant<size_t, 1>());
    column += take * int64_t{kWidth};
    left -= take;
  }
}

template <size_t MR, Put kPut, Lay kLay>
HWY_INLINE void RowBlock(const Product& p, int64_t row, int64_t begin, int64_t end, Range range) {
  Strips(begin, std::min(end, (range.n1 + 15) / 16 * 16), [&](int64_t column, auto nv) CAIRN_LAMBDA {
    Block<MR, decltype(nv)::value, kPut, kLay>(p, row, column, range.k0, range.k1);
  });
}

// C [m, n], n a multiple of 16. range(row, count) says what rows [row, row + count) need.
template <Put kPut, Lay kLay, class RangeOf>
HWY_INLINE void Multiply(const Product& p, int64_t m, int64_t n, const RangeOf& range) {
  for (int64_t begin = 0; begin < n; begin += kPanel) {
    const int64_t end = std::min(begin + kPanel, n);
    int64_t row = 0;
    for (; row + 6 <= m; row += 6) RowBlock<6, kPut, kLay>(p, row, begin, end, range(row, 6));
    if (row + 4 <= m) RowBlock<4, kPut, kLay>(p, row, begin, end, range(row, 4)), row += 4;
    if (row + 2 <= m) RowBlock<2, kPut, kLay>(p, row, begin, end, range(row, 2)), row += 2;
    if (row < m) RowBlock<1, kPut, kLay>(p, row, begin, end, range(row, 1));
  }
}

// All of it.
struct Full {
  int64_t n, k;
  HWY_INLINE Range operator()(int64_t, int64_t) const { return {n, 0, k}; }
};
// A is lower triangular: terms up to the row itself.
struct LowerTerms {
  int64_t n, k;
  HWY_INLINE Range operator()(int64_t row, int64_t count) const { return {n, 0, std::min(k, row + count)}; }
};
// A is upper triangular: terms from the row on.
struct UpperTerms {
  int64_t n, k;
  HWY_INLINE Range operator()(int64_t row, int64_t) const { return {n, std::min(k, row), k}; }
};
// Only the lower triangle of C is wanted.
struct LowerColumns {
  int64_t k;
  HWY_INLINE Range operator()(int64_t row, int64_t count) const { return {row + count, 0, k}; }
};

// One block of rows of a unit triangular system: what stands in C is the right side, the solution takes its place.
// Lower: A[m][k] at a[m * lda + k], k < m. Upper: A[m][k] at a[k * lda + m], k > m.
template <size_t MR, size_t NV, bool kUpper>
HWY_INLINE void SolveBlock(const float* a, int64_t lda, float* x, int64_t ldx, int64_t row, int64_t rows,
                           int64_t column) {
  const Tag d;
  const int64_t row_step = kUpper ? 1 : lda, k_step = kUpper ? lda : 1;
  Vec acc[MR][NV];
  float* HWY_RESTRICT c = x + row * ldx + column;
#pragma GCC unroll 16
  for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) acc[r][n] = hn::LoadU(d, c + r * ldx + n * kWidth);
  }
  const int64_t k0 = kUpper ? row + int64_t{MR} : 0, k1 = kUpper ? rows : row;
  for (int64_t k = k0; k < k1; ++k) {
    const float* HWY_RESTRICT b = x + k * ldx + column;
    Vec bv[NV];
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) bv[n] = hn::LoadU(d, b + n * kWidth);
#pragma GCC unroll 16
    for (size_t r = 0; r < MR; ++r) {
      const Vec av = hn::Set(d, a[(row + r) * row_step + k * k_step]);
#pragma GCC unroll 4
      for (size_t n = 0; n < NV; ++n) acc[r][n] = hn::NegMulAdd(av, bv[n], acc[r][n]);
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < MR; ++i) {
    const size_t r = kUpper ? MR - 1 - i : i;
#pragma GCC unroll 16
    for (size_t j = 0; j < i; ++j) {
      const size_t s = kUpper ? MR - 1 - j : j;
      const Vec av = hn::Set(d, a[(row + r) * row_step + (row + s) * k_step]);
#pragma GCC unroll 4
      for (size_t n = 0; n < NV; ++n) acc[r][n] = hn::NegMulAdd(av, acc[s][n], acc[r][n]);
    }
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) hn::StoreU(acc[r][n], d, c + r * ldx + n * kWidth);
  }
}

// (1 + A) X = X in place; X [rows, columns], columns a multiple of 16, A strictly triangular.
template <bool kUpper>
HWY_INLINE void Solve(const float* a, int64_t lda, float* x, int64_t ldx, int64_t rows, int64_t columns) {
  Strips(0, columns, [&](int64_t column, auto nv) CAIRN_LAMBDA {
    constexpr size_t NV = decltype(nv)::value;
    const int64_t sixes = rows / 6 * 6, fours = sixes + (rows - sixes) / 4 * 4;
    if constexpr (kUpper) {
      for (int64_t row = rows - 1; row >= fours; --row) SolveBlock<1, NV, true>(a, lda, x, ldx, row, rows, column);
      if (fours > sixes) SolveBlock<4, NV, true>(a, lda, x, ldx, sixes, rows, column);
      for (int64_t row = sixes - 6; row >= 0; row -= 6) SolveBlock<6, NV, true>(a, lda, x, ldx, row, rows, column);
    } else {
      for (int64_t row = 0; row < sixes; row += 6) SolveBlock<6, NV, false>(a, lda, x, ldx, row, rows, column);
      if (fours > sixes) SolveBlock<4, NV, false>(a, lda, x, ldx, sixes, rows, column);
      for (int64_t row = fours; row < rows; ++row) SolveBlock<1, NV, false>(a, lda, x, ldx, row, rows, column);
    }
  });
}

// x [rows, columns] -> t [columns, width], columns beyond `rows` zero; `columns` and `width` multiples of 4.
HWY_INLINE void Transpose(const float* x, int64_t ldx, int64_t rows, int64_t columns, float* t, int64_t ldt,
                          int64_t width) {
  const hn::FixedTag<float, 4> d;
  for (int64_t c0 = 0; c0 < columns; c0 += 16) {
    const int64_t c1 = std::min(c0 + 16, columns);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      for (int64_t c = c0; c < c1; c += 4) {
        const float* from = x + r * ldx + c;
        float* to = t + c * ldt + r;
        const auto a0 = hn::LoadU(d, from), a1 = hn::LoadU(d, from + ldx);
        const auto a2 = hn::LoadU(d, from + 2 * ldx), a3 = hn::LoadU(d, from + 3 * ldx);
        const auto b0 = hn::InterleaveLower(d, a0, a1), b1 = hn::InterleaveLower(d, a2, a3);
        const auto b2 = hn::InterleaveUpper(d, a0, a1), b3 = hn::InterleaveUpper(d, a2, a3);
        hn::StoreU(hn::ConcatLowerLower(d, b1, b0), d, to);
        hn::StoreU(hn::ConcatUpperUpper(d, b1, b0), d, to + ldt);
        hn::StoreU(hn::ConcatLowerLower(d, b3, b2), d, to + 2 * ldt);
        hn::StoreU(hn::ConcatUpperUpper(d, b3, b2), d, to + 3 * ldt);
      }
    }
    for (; r < width; ++r) {
      for (int64_t c = c0; c < c1; ++c) t[c * ldt + r] = r < rows ? x[r * ldx + c] : 0.0f;
    }
  }
}

// Rows of `dim` columns -> rows of `padded`, a multiple of 16, the columns beyond zero.
HWY_INLINE void Gather(const float* from, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = from + r * stride;
    float* y = to + r * padded;
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(x + c, part), y + c); });
  }
}
// The first `dim` columns of padded rows -> rows at a stride.
HWY_INLINE void Scatter(const float* from, int64_t padded, int64_t rows, int64_t dim, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = from + r * padded;
    float* y = to + r * stride;
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(x + c), y + c, part); });
  }
}
// x[r] *= factor[r]; columns a multiple of 16.
HWY_INLINE void ScaleRows(float* x, int64_t rows, int64_t columns, const float* factor) {
  for (int64_t r = 0; r < rows; ++r) {
    const F16 f = Set(factor[r]);
    float* row = x + r * columns;
    for (int64_t c = 0; c < columns; c += kLanes) Store(Load(row + c) * f, row + c);
  }
}

}  // namespace tiles
}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
