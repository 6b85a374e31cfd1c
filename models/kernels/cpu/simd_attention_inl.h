// Shared by the attention kernels, once for every target: products of small tiles, exp2 and log, dropout words,
// transposes.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_ATTENTION_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_ATTENTION_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_ATTENTION_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "models/kernels/cpu/reduce_four.h"
#include "models/kernels/cpu/simd_attention.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr int64_t kTile = kKeyTile;
constexpr size_t kQuads = kTile / kLanes;  // F16s in a row of a tile

// ---- products. C [M, N] from A [M, K] and B [K, N], vectors along N: every element is one chain of fused
// multiply-adds
// ---- over k in ascending order, so its bits depend on no blocking and on no vector width.

enum class Into { set, add, blend };  // C = AB; C = C + AB (inside the chain); C[r] = C[r] * alpha[r] + AB[r] * beta[r]
enum class Order { rows, columns };   // A at a[m * 64 + k] or a[k * 64 + m]

struct Product {
  const float* a;
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  const float* alpha = nullptr;
  const float* beta = nullptr;
};

template <size_t MR, size_t NV, Into kInto, Order kOrder>
HWY_INLINE void Block(const Product& p, int64_t row, int64_t column, int64_t k0, int64_t k1) {
  constexpr int64_t kRowStep = kOrder == Order::rows ? kTile : 1, kKStep = kOrder == Order::rows ? 1 : kTile;
  const Tag d;
  Vec acc[MR][NV];
  float* HWY_RESTRICT c = p.c + row * p.ldc + column;
#pragma GCC unroll 16
  for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n)
      acc[r][n] = kInto == Into::add ? hn::LoadU(d, c + r * p.ldc + n * kWidth) : hn::Zero(d);
  }
  const float* HWY_RESTRICT a = p.a + row * kRowStep + k0 * kKStep;
  const float* HWY_RESTRICT b = p.b + k0 * p.ldb + column;
  for (int64_t k = k0; k < k1; ++k, a += kKStep, b += p.ldb) {
    Vec bv[NV];
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) bv[n] = hn::LoadU(d, b + n * kWidth);
#pragma GCC unroll 16
    for (size_t r = 0; r < MR; ++r) {
      const Vec av = hn::Set(d, a[r * kRowStep]);
#pragma GCC unroll 4
      for (size_t n = 0; n < NV; ++n) acc[r][n] = hn::MulAdd(av, bv[n], acc[r][n]);
    }
  }
#pragma GCC unroll 16
  for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (size_t n = 0; n < NV; ++n) {
      float* to = c + r * p.ldc + n * kWidth;
      if constexpr (kInto == Into::blend) {
        const Vec old = hn::Mul(hn::LoadU(d, to), hn::Set(d, p.alpha[row + r]));
        acc[r][n] = hn::MulAdd(acc[r][n], hn::Set(d, p.beta[row + r]), old);
      }
      hn::StoreU(acc[r][n], d, to);
    }
  }
}

// Registers: MR * NV sums, NV of B, one of A.
constexpr size_t kMaxVectors = kParts == 1 ? 4 : 2;

// What a row block needs: columns [n0, n1) in multiples of 16, terms [k0, k1). Multiply asks range(row, count) for it.
struct Range {
  int64_t n0, n1, k0, k1;
};

template <size_t MR, Into kInto, Order kOrder>
HWY_INLINE void RowBlock(const Product& p, int64_t row, Range range) {
  int64_t column = range.n0;
  for (int64_t left = (range.n1 - range.n0) / int64_t{kWidth}; left > 0;) {
    const int64_t panels = (left + kMaxVectors - 1) / kMaxVectors, take = (left + panels - 1) / panels;
    if constexpr (kParts == 1) {
      if (take == 4) Block<MR, 4, kInto, kOrder>(p, row, column, range.k0, range.k1);
      if (take == 3) Block<MR, 3, kInto, kOrder>(p, row, column, range.k0, range.k1);
    }
    if (take == 2) Block<MR, 2, kInto, kOrder>(p, row, column, range.k0, range.k1);
    if (take == 1) Block<MR, 1, kInto, kOrder>(p, row, column, range.k0, range.k1);
    column += take * int64_t{kWidth};
    left -= take;
  }
}

template <Into kInto, Order kOrder, class RangeOf>
HWY_INLINE void Multiply(const Product& p, int64_t m, const RangeOf& range) {
  int64_t row = 0;
  for (; row + 6 <= m; row += 6) RowBlock<6, kInto, kOrder>(p, row, range(row, 6));
  if (row + 4 <= m) RowBlock<4, kInto, kOrder>(p, row, range(row, 4)), row += 4;
  for (; row < m; ++row) RowBlock<1, kInto, kOrder>(p, row, range(row, 1));
}

// ---- functions

// 2^x; 0 below -126 and for -inf; x <= 127. Within 1 ulp: degree 6, fitted to the relative error on [-1/2, 1/2].
HWY_INLINE F16 Exp2(F16 x) {
  const IntTag di;
  CAIRN_PARTS {
    const Tag d;
    // Rounds to an integer n; n + 127 is then found in the low bits.
    const auto magic = hn::Set(d, 12582912.0f + 127.0f);
    const auto shifted = hn::Add(x.v[p], magic);
    const auto r = hn::Sub(x.v[p], hn::Sub(shifted, magic));
    auto poly = hn::MulAdd(hn::Set(d, 0.00015353361959569156f), r, hn::Set(d, 0.0013398873852565885f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 0.00961843691766262f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 0.055503323674201965f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 0.24022647738456726f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 0.6931471824645996f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 1.0f));
    const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
    x.v[p] = hn::IfThenElseZero(hn::Ge(x.v[p], hn::Set(d, -126.0f)), hn::Mul(poly, power));
  }
  return x;
}

// Natural logarithm of a normal positive number: Cephes (logf.c).
HWY_INLINE F16 Log(F16 x) {
  const IntTag di;
  CAIRN_PARTS {
    const Tag d;
    const auto one = hn::Set(d, 1.0f);
    // Mantissa in [sqrt(1/2), sqrt(2)): subtract the bits of sqrt(1/2) before the exponent is cut off.
    const auto offset = hn::Set(di, 0x3f3504f3);
    const auto bits = hn::Sub(hn::BitCast(di, x.v[p]), offset);
    const auto exponent = hn::ConvertTo(d, hn::ShiftRight<23>(bits));
    const auto m = hn::Sub(hn::BitCast(d, hn::Add(hn::And(bits, hn::Set(di, 0x007fffff)), offset)), one);
    auto poly = hn::MulAdd(hn::Set(d, 7.0376836292e-2f), m, hn::Set(d, -1.1514610310e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, 1.1676998740e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, -1.2420140846e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, 1.4249322787e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, -1.6668057665e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, 2.0000714765e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, -2.4999993993e-1f));
    poly = hn::MulAdd(poly, m, hn::Set(d, 3.3333331174e-1f));
    const auto square = hn::Mul(m, m);
    auto y = hn::Mul(hn::Mul(poly, m), square);
    y = hn::MulAdd(exponent, hn::Set(d, -2.12194440e-4f), y);
    y = hn::MulAdd(hn::Set(d, -0.5f), square, y);
    x.v[p] = hn::MulAdd(exponent, hn::Set(d, 0.693359375f), hn::Add(m, y));
  }
  return x;
}

// Lane numbers 16 * quad + 0 .. 15.
HWY_INLINE F16 Columns(size_t quad) {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::Iota(Tag(), static_cast<float>(quad * kLanes + p * kWidth));
  return a;
}

// x where first <= column <= last, else `other`.
HWY_INLINE F16 Within(F16 x, size_t quad, float first, float last, F16 other) {
  const F16 column = Columns(quad);
  return IfThenElse(Lt(column, Set(first)), other, IfThenElse(Gt(column, Set(last)), other, x));
}

// ---- dropout: 16 Philox blocks decide about the 64 keys of a tile (models/random.h; ref/attention.h has the index).

using WordTag = hn::RebindToUnsigned<Tag>;
using Words = hn::Vec<WordTag>;

struct HighLow {
  Words high, low;
};
HWY_INLINE HighLow MultiplyWide(Words a, uint32_t by) {
  const WordTag d;
  const hn::Repartition<uint64_t, WordTag> wide;
  const Words b = hn::Set(d, by);
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), b);
  const auto upper = hn::Set(wide, 0xffffffff00000000ull);
  const auto high = hn::Or(hn::ShiftRight<32>(even), hn::And(odd, upper));
  const auto low = hn::Or(hn::AndNot(upper, even), hn::ShiftLeft<32>(odd));
  return {hn::BitCast(d, high), hn::BitCast(d, low)};
}

// Factors 0 or call.keep for the 64 keys of a tile. row: global row * heads + head.
HWY_INLINE void KeepFactors(const AttentionCall& call, uint64_t row, uint64_t tile, F16 factor[kQuads]) {
  const WordTag d;
  const uint64_t block = (row << 20) + tile * kLanes;
  CAIRN_PARTS {
    Words w0 = hn::Iota(d, static_cast<uint32_t>(block) + static_cast<uint32_t>(p * kWidth));
    Words w1 = hn::Set(d, static_cast<uint32_t>(block >> 32));
    Words w2 = hn::Set(d, static_cast<uint32_t>(call.stream)),
          w3 = hn::Set(d, static_cast<uint32_t>(call.stream >> 32));
    uint32_t key0 = call.key[0], key1 = call.key[1];
    for (int round = 0; round < 10; ++round) {
      const HighLow x = MultiplyWide(w0, 0xD2511F53u), y = MultiplyWide(w2, 0xCD9E8D57u);
      w0 = hn::Xor(hn::Xor(y.high, w1), hn::Set(d, key0));
      w2 = hn::Xor(hn::Xor(x.high, w3), hn::Set(d, key1));
      w1 = y.low;
      w3 = x.low;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const Words word[4] = {w0, w1, w2, w3};
    const IntTag di;
    const auto flip = hn::Set(d, 0x80000000u);
    const auto threshold = hn::BitCast(di, hn::Xor(hn::Set(d, call.drop_threshold), flip));
    for (size_t q = 0; q < kQuads; ++q) {
      const auto dropped = hn::Gt(threshold, hn::BitCast(di, hn::Xor(word[q], flip)));
      factor[q].v[p] = hn::IfThenZeroElse(hn::RebindMask(Tag(), dropped), hn::Set(Tag(), call.keep));
    }
  }
}

// ---- layout

// Four rows of x from column c -> columns of four in t [*, 64].
HWY_INLINE void TransposeFour(const float* x, int64_t stride, float scale, float* t) {
  const hn::FixedTag<float, 4> d;
  const auto s = hn::Set(d, scale);
  const auto a0 = hn::Mul(s, hn::LoadU(d, x)), a1 = hn::Mul(s, hn::LoadU(d, x + stride));
  const auto a2 = hn::Mul(s, hn::LoadU(d, x + 2 * stride)), a3 = hn::Mul(s, hn::LoadU(d, x + 3 * stride));
  const auto b0 = hn::InterleaveLower(a0, a1), b1 = hn::InterleaveLower(a2, a3);
  const auto b2 = hn::InterleaveUpper(d, a0, a1), b3 = hn::InterleaveUpper(d, a2, a3);
  hn::StoreU(hn::ConcatLowerLower(d, b1, b0), d, t);
  hn::StoreU(hn::ConcatUpperUpper(d, b1, b0), d, t + kTile);
  hn::StoreU(hn::ConcatLowerLower(d, b3, b2), d, t + 2 * kTile);
  hn::StoreU(hn::ConcatUpperUpper(d, b3, b2), d, t + 3 * kTile);
}

HWY_INLINE void Transpose(Rows rows, int64_t count, int64_t dim, float scale, float* t) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const float* x = rows.data + r * rows.stride;
    int64_t c = 0;
    for (; c + 4 <= dim; c += 4) TransposeFour(x + c, rows.stride, scale, t + c * kTile + r);
    for (; c < dim; ++c)
      for (int64_t i = 0; i < 4; ++i) t[c * kTile + r + i] = x[i * rows.stride + c] * scale;
  }
  for (; r < kTile; ++r)
    for (int64_t c = 0; c < dim; ++c) t[c * kTile + r] = r < count ? rows.data[r * rows.stride + c] * scale : 0.0f;
}

HWY_INLINE void CopyRows(Rows rows, int64_t count, int64_t dim, int64_t padded, float scale, float* to) {
  const F16 s = Set(scale);
  for (int64_t r = 0; r < count; ++r) {
    const float* from = rows.data + r * rows.stride;
    float* row = to + r * padded;
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c, part) * s, row + c); });
  }
}

// What a block of query rows sees of one key tile. Row r (of the block) sees columns first(r) <= j <= r + diagonal.
struct Band {
  const int32_t* first_key;  // of the block's rows
  int64_t key0;              // first key of the tile
  int64_t diagonal;          // position of the block's first row - key0; may be negative
  int64_t rows, keys;        // rows of the block, keys of the tile

  int64_t first(int64_t r) const { return std::max<int64_t>(0, first_key[r] - key0); }
  int64_t last(int64_t r) const { return r + diagonal; }
  bool whole() const { return diagonal >= keys - 1 && keys == kTile && first_key[rows - 1] <= key0; }
};

// Scores and their gradients: rows are queries, columns keys, k the features.
struct ScoreRange {
  const Band& band;
  int64_t dim;
  HWY_INLINE Range operator()(int64_t row, int64_t count) const {
    const int64_t n1 = std::clamp<int64_t>(band.diagonal + row + count, 0, kTile);
    return {std::min(band.first(row) / 16 * 16, kTile), (n1 + 15) / 16 * 16, 0, dim};
  }
};
// Rows are queries, columns features, k the keys.
struct QueryRange {
  const Band& band;
  int64_t padded;
  HWY_INLINE Range operator()(int64_t row, int64_t count) const {
    const int64_t k1 = std::clamp<int64_t>(band.diagonal + row + count, 0, band.keys);
    return {0, padded, std::min(band.first(row), k1), k1};
  }
};
// Rows are keys, columns features, k the queries.
struct KeyRange {
  const Band& band;
  int64_t padded;
  HWY_INLINE Range operator()(int64_t key, int64_t count) const {
    int64_t k1 = band.rows;
    while (k1 > 0 && band.first_key[k1 - 1] - band.key0 > key + count - 1) --k1;
    return {0, padded, std::min(std::max<int64_t>(0, key - band.diagonal), k1), k1};
  }
};

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
