// The activations and their slopes, once for every target: for kernels that fuse them with what stands beside them.

// Included once for every target.
#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_ACTIVATION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_ACTIVATION_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_ACTIVATION_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_ACTIVATION_INL_H
#endif

#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

struct Both {
  F16 value, slope;
};

struct Silu {  // x sigmoid(x)
  static HWY_INLINE F16 Value(F16 x) { return x / (Set(1.0f) + Exp(Neg(x))); }
  static HWY_INLINE Both ValueAndSlope(F16 x) {
    const F16 e = Exp(Neg(x)), s = Set(1.0f) / (Set(1.0f) + e), value = x * s;
    return {value, MulAdd(value, e * s, s)};  // s (1 + x (1 - s)); 1 - s = e s does not cancel
  }
};

struct Gelu {  // x Phi(x), Phi the normal distribution
  static HWY_INLINE F16 Phi(F16 x) { return MulAdd(Erf(x * Set(0.70710678118654752f)), Set(0.5f), Set(0.5f)); }
  static HWY_INLINE F16 Value(F16 x) { return x * Phi(x); }
  static HWY_INLINE Both ValueAndSlope(F16 x) {
    const F16 phi = Phi(x), density = Exp(x * x * Set(-0.5f)) * Set(0.39894228040143268f);
    return {x * phi, MulAdd(x, density, phi)};
  }
};

struct GeluTanh {  // 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  static HWY_INLINE F16 Inner2(F16 x) {
    return x * MulAdd(x * x, Set(2 * 0.79788456080286536f * 0.044715f), Set(2 * 0.79788456080286536f));
  }
  static HWY_INLINE F16 Value(F16 x) { return x / (Set(1.0f) + Exp(Neg(Inner2(x)))); }
  static HWY_INLINE Both ValueAndSlope(F16 x) {
    const F16 c = Max(Set(-20.0f), Min(Set(20.0f), x));  // where the slope is 0 or 1; keeps x^3 in range
    const F16 e = Exp(Neg(Inner2(c))), s = Set(1.0f) / (Set(1.0f) + e);
    const F16 inner_slope = MulAdd(c * c, Set(6 * 0.79788456080286536f * 0.044715f), Set(2 * 0.79788456080286536f));
    return {x * s, MulAdd(c * s * (e * s), inner_slope, s)};
  }
};

struct Relu {
  static HWY_INLINE F16 Value(F16 x) { return Max(Zero(), x); }
  static HWY_INLINE Both ValueAndSlope(F16 x) { return {Value(x), IfThenElseZero(Gt(x, Zero()), Set(1.0f))}; }
};

struct Relu2 {  // max(x, 0)^2
  static HWY_INLINE F16 Value(F16 x) {
    const F16 r = Max(Zero(), x);
    return r * r;
  }
  static HWY_INLINE Both ValueAndSlope(F16 x) {
    const F16 r = Max(Zero(), x);
    return {r * r, r + r};
  }
};

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
