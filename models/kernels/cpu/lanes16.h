// F16: sixteen float lanes on every machine: one AVX-512 register, two of AVX2, four of SSE4 or NEON. A reduction over
// them therefore adds the same numbers in the same order everywhere, and AVX2 and AVX-512 give the same bits (both have
// fused multiply-add, the same masks and correctly rounded division and square root).
//
// How a simd_<op>.cpp begins (it includes no torch header):
//   #include "models/kernels/cpu/simd_<op>.h"
//   #include "models/kernels/cpu/targets.h"
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_<op>.cpp"
//   #include "hwy/foreach_target.h"
//   #include "models/kernels/cpu/lanes16.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace cairn::kernels::HWY_NAMESPACE { ... }
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   namespace cairn::kernels { HWY_EXPORT(Function); void function(...) { HWY_DYNAMIC_DISPATCH(Function)(...); } }
//   #endif
//
// NOTE: a * b + c is never contracted; write MulAdd where the fused form is wanted.

// Included once for every target.
#if defined(CAIRN_MODELS_KERNELS_CPU_LANES16_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_LANES16_H
#undef CAIRN_MODELS_KERNELS_CPU_LANES16_H
#else
#define CAIRN_MODELS_KERNELS_CPU_LANES16_H
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

// On the loops over the parts of an F16, which must vanish.
#define CAIRN_PARTS _Pragma("GCC unroll 4") for (size_t p = 0; p < kParts; ++p)
// On a lambda that is handed to a loop helper.
#define CAIRN_LAMBDA HWY_ATTR __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<float, 16>;
using IntTag = hn::RebindToSigned<Tag>;
using Vec = hn::Vec<Tag>;
constexpr size_t kLanes = 16;
constexpr size_t kWidth = hn::MaxLanes(Tag());
constexpr size_t kParts = kLanes / kWidth;

struct F16 {
  Vec v[kParts];
};
struct M16 {  // one truth value a lane
  hn::Mask<Tag> v[kParts];
};

#define CAIRN_UNARY(name)                  \
  HWY_INLINE F16 name(F16 a) {             \
    CAIRN_PARTS a.v[p] = hn::name(a.v[p]); \
    return a;                              \
  }
#define CAIRN_BINARY(name)                         \
  HWY_INLINE F16 name(F16 a, F16 b) {              \
    CAIRN_PARTS a.v[p] = hn::name(a.v[p], b.v[p]); \
    return a;                                      \
  }
#define CAIRN_TERNARY(name)                                \
  HWY_INLINE F16 name(F16 a, F16 b, F16 c) {               \
    CAIRN_PARTS a.v[p] = hn::name(a.v[p], b.v[p], c.v[p]); \
    return a;                                              \
  }
#define CAIRN_COMPARE(name)                        \
  HWY_INLINE M16 name(F16 a, F16 b) {              \
    M16 m;                                         \
    CAIRN_PARTS m.v[p] = hn::name(a.v[p], b.v[p]); \
    return m;                                      \
  }
CAIRN_UNARY(Abs)
CAIRN_UNARY(Neg)
CAIRN_UNARY(Sqrt)
CAIRN_BINARY(Add)
CAIRN_BINARY(Sub)
CAIRN_BINARY(Mul)
CAIRN_BINARY(Div)
CAIRN_BINARY(Min)         // x86: the second where either is NaN
CAIRN_BINARY(Max)         // x86: the second where either is NaN
CAIRN_TERNARY(MulAdd)     // a * b + c, rounded once
CAIRN_TERNARY(NegMulAdd)  // c - a * b, rounded once
CAIRN_TERNARY(MulSub)     // a * b - c, rounded once
CAIRN_COMPARE(Lt)
CAIRN_COMPARE(Le)
CAIRN_COMPARE(Gt)
CAIRN_COMPARE(Ge)
CAIRN_COMPARE(Eq)
#undef CAIRN_UNARY
#undef CAIRN_BINARY
#undef CAIRN_TERNARY
#undef CAIRN_COMPARE

HWY_INLINE F16 operator+(F16 a, F16 b) { return Add(a, b); }
HWY_INLINE F16 operator-(F16 a, F16 b) { return Sub(a, b); }
HWY_INLINE F16 operator*(F16 a, F16 b) { return Mul(a, b); }
HWY_INLINE F16 operator/(F16 a, F16 b) { return Div(a, b); }

HWY_INLINE F16 Set(float x) {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::Set(Tag(), x);
  return a;
}
HWY_INLINE F16 Zero() {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::Zero(Tag());
  return a;
}
HWY_INLINE F16 IfThenElse(M16 m, F16 yes, F16 no) {
  CAIRN_PARTS yes.v[p] = hn::IfThenElse(m.v[p], yes.v[p], no.v[p]);
  return yes;
}
HWY_INLINE F16 IfThenElseZero(M16 m, F16 yes) {
  CAIRN_PARTS yes.v[p] = hn::IfThenElseZero(m.v[p], yes.v[p]);
  return yes;
}
HWY_INLINE F16 IfThenZeroElse(M16 m, F16 no) {
  CAIRN_PARTS no.v[p] = hn::IfThenZeroElse(m.v[p], no.v[p]);
  return no;
}
// Magnitude of a, sign of b.
HWY_INLINE F16 CopySign(F16 a, F16 b) {
  CAIRN_PARTS a.v[p] = hn::CopySign(a.v[p], b.v[p]);
  return a;
}

// ---- memory; no alignment is asked for. Whole says "all sixteen", First{n} says "the first n" (0 <= n <= 16): the
// ---- others read as zero (or `fill`) and are neither read nor written in memory.
struct Whole {};
struct First {
  size_t n;
};

HWY_INLINE F16 Load(const float* from, Whole = {}) {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::LoadU(Tag(), from + p * kWidth);
  return a;
}
HWY_INLINE void Store(F16 a, float* to, Whole = {}) { CAIRN_PARTS hn::StoreU(a.v[p], Tag(), to + p * kWidth); }

HWY_INLINE size_t CountIn(size_t part, First some) {
  const size_t before = part * kWidth;
  return some.n <= before ? 0 : some.n - before < kWidth ? some.n - before : kWidth;
}
HWY_INLINE M16 FirstMask(First some) {
  M16 m;
  CAIRN_PARTS m.v[p] = hn::FirstN(Tag(), CountIn(p, some));
  return m;
}
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_INLINE F16 Load(const float* from, First some) {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::MaskedLoad(hn::FirstN(Tag(), CountIn(p, some)), Tag(), from + p * kWidth);
  return a;
}
HWY_INLINE void Store(F16 a, float* to, First some) {
  CAIRN_PARTS hn::BlendedStore(a.v[p], hn::FirstN(Tag(), CountIn(p, some)), Tag(), to + p * kWidth);
}
#else  // no masked memory access
HWY_INLINE F16 Load(const float* from, First some) {
  float buffer[kLanes] = {};
  for (size_t i = 0; i < some.n; ++i) buffer[i] = from[i];
  return Load(buffer);
}
HWY_INLINE void Store(F16 a, float* to, First some) {
  float buffer[kLanes];
  Store(a, buffer);
  for (size_t i = 0; i < some.n; ++i) to[i] = buffer[i];
}
#endif
HWY_INLINE F16 Load(const float* from, Whole, F16 /*fill*/) { return Load(from); }
HWY_INLINE F16 Load(const float* from, First some, F16 fill) {
  return IfThenElse(FirstMask(some), Load(from, some), fill);
}

// f(i, Whole{}) for i = 0, 16, ... and f(i, First{n - i}) for what is left:
//   ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA { Store(Load(x + i, part) * scale, y + i, part); });
template <class Body>
HWY_INLINE void ForColumns(size_t n, Body body) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Whole{});
  if (i < n) body(i, First{n - i});
}

// ---- reductions: lane i with lane i + 8, then + 4, + 2, + 1
template <class Pair>
HWY_INLINE float Fold(F16 a, Pair pair) {
  alignas(64) float lane[kLanes];
  Store(a, lane);
  const hn::FixedTag<float, 4> d4;
  auto low = pair(hn::Load(d4, lane), hn::Load(d4, lane + 8));
  auto high = pair(hn::Load(d4, lane + 4), hn::Load(d4, lane + 12));
  low = pair(low, high);
  low = pair(low, hn::Shuffle1032(low));
  low = pair(low, hn::Shuffle2301(low));
  return hn::GetLane(low);
}
HWY_INLINE float ReduceSum(F16 a) {
  return Fold(a, [](auto x, auto y) CAIRN_LAMBDA { return hn::Add(x, y); });
}
HWY_INLINE float ReduceMax(F16 a) {
  return Fold(a, [](auto x, auto y) CAIRN_LAMBDA { return hn::Max(x, y); });
}

// ---- functions

// e^x within 1 ulp or so for x in [-87.33, 87.33]; 0 below (also for -inf), constant 8.5e37 above; NaN stays NaN.
// Range reduction by ln 2 in two pieces and Cephes' polynomial (expf.c).
HWY_INLINE F16 Exp(F16 x) {
  const IntTag di;
  F16 y;
  CAIRN_PARTS {
    const Tag d;
    const auto a = hn::Min(hn::Set(d, 87.33f), x.v[p]);  // this order lets NaN pass
    // Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits.
    const auto magic = hn::Set(d, 12582912.0f);
    const auto shifted = hn::MulAdd(a, hn::Set(d, 1.44269504088896341f), magic);
    const auto n = hn::Sub(shifted, magic);
    auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), a);
    r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
    auto poly = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 8.3334519073e-3f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 4.1665795894e-2f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 1.6666665459e-1f));
    poly = hn::MulAdd(poly, r, hn::Set(d, 5.0000001201e-1f));
    poly = hn::Add(hn::MulAdd(poly, hn::Mul(r, r), r), hn::Set(d, 1.0f));
    const auto power = hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127)));  // bits of 2^n
    const auto scaled = hn::Mul(poly, hn::BitCast(d, power));
    y.v[p] = hn::IfThenZeroElse(hn::Lt(x.v[p], hn::Set(d, -87.33f)), scaled);
  }
  return y;
}

// tanh x: Cephes' odd polynomial (tanhf.c) below 0.625, 1 - 2 / (e^2x + 1) above. Relative error a few ulp.
HWY_INLINE F16 Tanh(F16 x) {
  const F16 a = Abs(x), square = x * x;
  const F16 large = CopySign(Set(1.0f) - Set(2.0f) / (Exp(a + a) + Set(1.0f)), x);
  F16 poly = MulAdd(Set(-5.70498872745e-3f), square, Set(2.06390887954e-2f));
  poly = MulAdd(poly, square, Set(-5.37397155531e-2f));
  poly = MulAdd(poly, square, Set(1.33314422036e-1f));
  poly = MulAdd(poly, square, Set(-3.33332819422e-1f));
  return IfThenElse(Lt(a, Set(0.625f)), MulAdd(poly * square, x, x), large);
}

// 1 / (1 + e^-x)
HWY_INLINE F16 Sigmoid(F16 x) { return Set(1.0f) / (Set(1.0f) + Exp(Neg(x))); }

// erf x: rational approximation of Eigen and XLA; +-1 from 3.92 on, where the nearest float is 1.
HWY_INLINE F16 Erf(F16 x) {
  const F16 a = Max(Set(-4.0f), Min(Set(4.0f), x)), s = a * a;  // this order lets NaN pass
  F16 up = MulAdd(Set(-2.72614225801306e-10f), s, Set(2.77068142495902e-08f));
  up = MulAdd(up, s, Set(-2.10102402082508e-06f));
  up = MulAdd(up, s, Set(-5.69250639462346e-05f));
  up = MulAdd(up, s, Set(-7.34990630326855e-04f));
  up = MulAdd(up, s, Set(-2.95459980854025e-03f));
  up = MulAdd(up, s, Set(-1.60960333262415e-02f));
  F16 down = MulAdd(Set(-1.45660718464996e-05f), s, Set(-2.13374055278905e-04f));
  down = MulAdd(down, s, Set(-1.68282697438203e-03f));
  down = MulAdd(down, s, Set(-7.37332916720468e-03f));
  down = MulAdd(down, s, Set(-1.42647390514189e-02f));
  return IfThenElse(Ge(Abs(x), Set(3.92f)), CopySign(Set(1.0f), x), a * up / down);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
