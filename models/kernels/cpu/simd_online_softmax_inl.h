// The softmax of up to 64 rows over key tiles that come one after another (Milakov 2018), once for every target: shared
// by every attention that takes its keys in tiles, so that a row gets the same bits from each.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_ONLINE_SOFTMAX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_ONLINE_SOFTMAX_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_ONLINE_SOFTMAX_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_ONLINE_SOFTMAX_INL_H
#endif

#include <limits>

#include "models/kernels/cpu/simd_attention_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Reduces four rows of a tile at once: body(row) gives the F16 of a row, to[row] receives its reduction.
template <class Pair, class Body>
HWY_INLINE void ReduceRows(int64_t rows, float* to, const Body& body) {
  for (int64_t r = 0; r < rows; r += 4) {
    F16 part[4];
    for (int64_t i = 0; i < 4; ++i) part[i] = r + i < rows ? body(r + i) : Zero();
    hn::StoreU(ReduceFour<Pair>(part[0], part[1], part[2], part[3]), hn::FixedTag<float, 4>(), to + r);
  }
}

// Scores [rows, 64] as the product left them -> log2 units, -inf where not seen; their maximum by row.
template <class FirstOf, class LastOf>
HWY_INLINE void Maximum(const AttentionCall& call, int64_t rows, bool whole, const FirstOf& first, const LastOf& last,
                        float* scores, float* maximum) {
  const F16 nothing = Set(kNothing);
  ReduceRows<MaxPair>(rows, maximum, [&](int64_t r) CAIRN_LAMBDA {
    float* row = scores + r * kTile;
    F16 s[kQuads];
    for (size_t q = 0; q < kQuads; ++q) s[q] = Load(row + q * kLanes);
    if (call.cap > 0)
      for (size_t q = 0; q < kQuads; ++q) s[q] = Set(call.cap) * Tanh(s[q]);
    if (!whole)
      for (size_t q = 0; q < kQuads; ++q)
        s[q] = Within(s[q], q, static_cast<float>(first(r)), static_cast<float>(last(r)), nothing);
    if (!whole || call.cap > 0)
      for (size_t q = 0; q < kQuads; ++q) Store(s[q], row + q * kLanes);
    return Max(Max(s[0], s[1]), Max(s[2], s[3]));
  });
}

// Scores -> 2^(score - maximum of the row), and their sum by row.
HWY_INLINE void Exponentials(int64_t rows, const float* maximum, float* scores, float* sum) {
  ReduceRows<SumPair>(rows, sum, [&](int64_t r) CAIRN_LAMBDA {
    float* row = scores + r * kTile;
    const F16 base = Set(maximum[r] == kNothing ? 0.0f : maximum[r]);
    F16 p[kQuads];
    for (size_t q = 0; q < kQuads; ++q) {
      p[q] = Exp2(Load(row + q * kLanes) - base);
      Store(p[q], row + q * kLanes);
    }
    return (p[0] + p[1]) + (p[2] + p[3]);
  });
}

// The running softmax of up to 64 rows, joined with one more tile.
struct Running {
  alignas(64) float maximum[kTile], sum[kTile], alpha[kTile], beta[kTile];

  HWY_INLINE void Clear() {
    std::fill_n(maximum, kTile, kNothing);
    std::fill_n(sum, kTile, 0.0f);
  }
  // A score that stands before the first tile and has no value.
  HWY_INLINE void Begin(int64_t r, float sink) { maximum[r] = sink, sum[r] = 1.0f; }
  HWY_INLINE void Join(int64_t rows, const float* tile_maximum, const float* tile_sum) {
    for (int64_t r = 0; r < rows; r += kLanes) {
      const F16 old = Load(maximum + r), tile = Load(tile_maximum + r), most = Max(old, tile);
      const F16 base = IfThenElse(Gt(most, Set(kNothing)), most, Zero());
      const F16 a = Exp2(old - base), b = Exp2(tile - base);
      Store(most, maximum + r);
      Store(a, alpha + r);
      Store(b, beta + r);
      Store(MulAdd(Load(tile_sum + r), b, Load(sum + r) * a), sum + r);
    }
  }
};

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
