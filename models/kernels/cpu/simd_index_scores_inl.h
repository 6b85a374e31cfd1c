// Scores of the lightning indexer against a tile of 64 keys, once for every target.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_INDEX_SCORES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_INDEX_SCORES_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_INDEX_SCORES_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_INDEX_SCORES_INL_H
#endif

#include "models/kernels/cpu/lanes16.h"
#include "models/kernels/cpu/simd_attention.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr size_t kScoreVectors = kParts == 1 ? 4 : 2;  // of keys that are in registers at once

// scores += sum over kHeads heads of w relu(q . k): every dot product one chain over the features.
template <size_t kHeads>
HWY_INLINE void ScoreHeads(const float* HWY_RESTRICT q, int64_t dim, const float* HWY_RESTRICT w,
                           const float* HWY_RESTRICT keys, Vec* scores) {
  const Tag d;
  Vec sum[kHeads][kScoreVectors];
  for (auto& head : sum)
    for (auto& s : head) s = hn::Zero(d);
  for (int64_t c = 0; c < dim; ++c, keys += kKeyTile) {
    Vec a[kHeads];
#pragma GCC unroll 4
    for (size_t j = 0; j < kHeads; ++j) a[j] = hn::Set(d, q[j * dim + c]);
#pragma GCC unroll 4
    for (size_t n = 0; n < kScoreVectors; ++n) {
      const Vec k = hn::LoadU(d, keys + n * kWidth);
#pragma GCC unroll 4
      for (size_t j = 0; j < kHeads; ++j) sum[j][n] = hn::MulAdd(a[j], k, sum[j][n]);
    }
  }
#pragma GCC unroll 4
  for (size_t j = 0; j < kHeads; ++j) {
    const Vec weight = hn::Set(d, w[j]);
#pragma GCC unroll 4
    for (size_t n = 0; n < kScoreVectors; ++n)  // this order of Max lets NaN pass
      scores[n] = hn::MulAdd(hn::Max(hn::Zero(d), sum[j][n]), weight, scores[n]);
  }
}

// One query q [heads, dim], w [heads] against transposed keys [dim, 64] -> scores [64]. On its own: inlined, its sums
// would share the registers with the constants of whatever stands around it.
static HWY_NOINLINE void ScoreTile(const float* q, const float* w, int64_t heads, int64_t dim, const float* keys,
                                   float* scores) {
  const Tag d;
  for (int64_t column = 0; column < kKeyTile; column += kScoreVectors * kWidth) {
    Vec s[kScoreVectors];
    for (auto& v : s) v = hn::Zero(d);
    int64_t j = 0;
    for (; j + 4 <= heads; j += 4) ScoreHeads<4>(q + j * dim, dim, w + j, keys + column, s);
    if (j + 2 <= heads) ScoreHeads<2>(q + j * dim, dim, w + j, keys + column, s), j += 2;
    if (j < heads) ScoreHeads<1>(q + j * dim, dim, w + j, keys + column, s);
    for (size_t n = 0; n < kScoreVectors; ++n) hn::StoreU(s[n], d, scores + column + n * kWidth);
  }
}

// Scores as they are compared: no NaN, no negative zero, finite; -inf where the position stands outside [first, last],
// +inf where it is always chosen: below `sink` or from `near` on.
struct Visible {
  int64_t first, last, sink, near;
};
HWY_INLINE void Rank(const Visible& v, int64_t key0, float* scores) {
  const F16 lowest = Set(std::numeric_limits<float>::lowest()), highest = Set(std::numeric_limits<float>::max());
  const F16 always = Set(std::numeric_limits<float>::infinity()), never = Set(-std::numeric_limits<float>::infinity());
  const bool whole = v.first <= key0 && v.last >= key0 + kKeyTile - 1,
             plain = v.sink <= key0 && v.near >= key0 + kKeyTile;
  for (int64_t i = 0; i < kKeyTile; i += kLanes) {
    // In this order Max gives its second operand where the first is NaN.
    F16 s = Min(Max(Load(scores + i) + Zero(), lowest), highest);
    if (!whole || !plain) {
      F16 column;
      CAIRN_PARTS column.v[p] = hn::Iota(Tag(), static_cast<float>(i + static_cast<int64_t>(p * kWidth)));
      const auto at = [&](int64_t position) { return Set(static_cast<float>(position - key0)); };
      if (!plain) {
        s = IfThenElse(Lt(column, at(v.sink)), always, s);
        s = IfThenElse(Ge(column, at(v.near)), always, s);
      }
      if (!whole) {
        s = IfThenElse(Lt(column, at(v.first)), never, s);
        s = IfThenElse(Gt(column, at(v.last)), never, s);
      }
    }
    Store(s, scores + i);
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
