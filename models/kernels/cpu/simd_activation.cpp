#include "models/kernels/cpu/simd_activation.h"

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_activation.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_activation_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

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
