// Four reductions at once, each with the bits of ReduceSum or ReduceMax (lanes16.h): a third of the work of four alone.

// Included once for every target.
#if defined(CAIRN_MODELS_KERNELS_CPU_REDUCE_FOUR_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_REDUCE_FOUR_H
#undef CAIRN_MODELS_KERNELS_CPU_REDUCE_FOUR_H
#else
#define CAIRN_MODELS_KERNELS_CPU_REDUCE_FOUR_H
#endif

#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

using Quad = hn::Vec<hn::FixedTag<float, 4>>;

// Function objects rather than lambdas: they take vectors of every width.
struct SumPair {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Add(a, b);
  }
};
struct MaxPair {
  template <class V>
  HWY_INLINE V operator()(V a, V b) const {
    return hn::Max(a, b);
  }
};

// Lane i with lane i + 8, then with i + 4.
template <class Pair, class D, class V>
HWY_INLINE Quad Halve(D d, V v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return Halve<Pair>(half, Pair()(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
template <class Pair, size_t kN>
HWY_INLINE Quad ToQuad(const Vec* v) {
  if constexpr (kN == 1) {
    return Halve<Pair>(Tag(), v[0]);
  } else {
    Vec half[kN / 2];
    for (size_t i = 0; i < kN / 2; ++i) half[i] = Pair()(v[i], v[i + kN / 2]);
    return ToQuad<Pair, kN / 2>(half);
  }
}

// Then lane i with i + 2, and 0 with 1, of all four by a transpose.
template <class Pair>
HWY_INLINE Quad ReduceFour(F16 a, F16 b, F16 c, F16 e) {
  const hn::FixedTag<float, 4> d;
  const Quad qa = ToQuad<Pair, kParts>(a.v), qb = ToQuad<Pair, kParts>(b.v);
  const Quad qc = ToQuad<Pair, kParts>(c.v), qe = ToQuad<Pair, kParts>(e.v);
  const Quad ab = hn::InterleaveLower(d, qa, qb), ce = hn::InterleaveLower(d, qc, qe);
  const Quad ab2 = hn::InterleaveUpper(d, qa, qb), ce2 = hn::InterleaveUpper(d, qc, qe);
  const Quad even = Pair()(hn::ConcatLowerLower(d, ce, ab), hn::ConcatLowerLower(d, ce2, ab2));
  const Quad odd = Pair()(hn::ConcatUpperUpper(d, ce, ab), hn::ConcatUpperUpper(d, ce2, ab2));
  return Pair()(even, odd);
}
HWY_INLINE Quad SumFour(F16 a, F16 b, F16 c, F16 e) { return ReduceFour<SumPair>(a, b, c, e); }
HWY_INLINE Quad MaxFour(F16 a, F16 b, F16 c, F16 e) { return ReduceFour<MaxPair>(a, b, c, e); }

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
