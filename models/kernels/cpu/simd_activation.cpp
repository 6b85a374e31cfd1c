#include "models/kernels/cpu/simd_activation.h"

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_activation.cpp"
#include "hwy/foreach_target.h"
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

template <class Act>
void GatedRows(const Gated& job) {
  const size_t columns = job.columns;
#pragma omp parallel for schedule(static) if (job.rows * columns >= kParallelElements / 4)
  for (size_t n = 0; n < job.rows; ++n) {
    const float* gate = job.gate_up + static_cast<ptrdiff_t>(n) * job.gate_up_stride;
    const float* up = gate + columns;
    float* out = job.out + static_cast<ptrdiff_t>(n) * job.out_stride;
    if (!job.dh) {
      ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
        Store(Act::Value(Load(gate + i, part)) * Load(up + i, part), out + i, part);
      });
    } else {
      const float* dh = job.dh + n * columns;
      ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
        const F16 d = Load(dh + i, part);
        const Both act = Act::ValueAndSlope(Load(gate + i, part));
        const F16 u = Load(up + i, part);
        const F16 dgate = d * u * act.slope;
        if (job.h) Store(act.value * u, job.h + n * columns + i, part);
        Store(d * act.value, out + columns + i, part);
        Store(dgate, out + i, part);
      });
    }
  }
}

template <class Act>
void ActivationChunks(const float* x, const float* dy, float* y, size_t n) {
  constexpr size_t kChunk = 4096;
#pragma omp parallel for schedule(static) if (n >= kParallelElements / 4)
  for (size_t begin = 0; begin < n; begin += kChunk) {
    const size_t count = n - begin < kChunk ? n - begin : kChunk;
    ForColumns(count, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Load(x + begin + i, part);
      Store(dy ? Load(dy + begin + i, part) * Act::ValueAndSlope(a).slope : Act::Value(a), y + begin + i, part);
    });
  }
}

// In the order of enum Activation.
void GatedByKind(const Gated& job, int kind) {
  constexpr void (*kTable[])(const Gated&) = {GatedRows<Silu>, GatedRows<Gelu>, GatedRows<GeluTanh>, GatedRows<Relu>,
                                              GatedRows<Relu2>};
  kTable[kind](job);
}
void ActivationByKind(const float* x, const float* dy, float* y, size_t n, int kind) {
  constexpr void (*kTable[])(const float*, const float*, float*, size_t) = {
      ActivationChunks<Silu>, ActivationChunks<Gelu>, ActivationChunks<GeluTanh>, ActivationChunks<Relu>,
      ActivationChunks<Relu2>};
  kTable[kind](x, dy, y, n);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(GatedByKind);
HWY_EXPORT(ActivationByKind);

void simd_gated(const Gated& job, int kind) { HWY_DYNAMIC_DISPATCH(GatedByKind)(job, kind); }
void simd_activation(const float* x, const float* dy, float* y, size_t n, int kind) {
  HWY_DYNAMIC_DISPATCH(ActivationByKind)(x, dy, y, n, kind);
}
}  // namespace cairn::kernels
#endif
