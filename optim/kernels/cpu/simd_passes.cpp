// Highway versions of optim/kernels/passes.h, chosen at run time.
#include "optim/kernels/passes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/kernels/cpu/simd_passes.cpp"
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace cairn::optim::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using V = hn::Vec<F>;

// Vectors of a tail: the same instructions on a padded copy, so the last elements of a run have the bits that they
// would have inside one.
inline V load(F d, const float* x, size_t left) {
  if (left >= hn::Lanes(d)) return hn::LoadU(d, x);
  alignas(64) float pad[hn::MaxLanes(F())] = {};
  for (size_t i = 0; i < left; ++i) pad[i] = x[i];
  return hn::Load(d, pad);
}
inline void store(F d, V value, float* x, size_t left) {
  if (left >= hn::Lanes(d)) return hn::StoreU(value, d, x);
  alignas(64) float pad[hn::MaxLanes(F())];
  hn::Store(value, d, pad);
  for (size_t i = 0; i < left; ++i) x[i] = pad[i];
}

// Parameters: float32 as they are; bfloat16 widened exactly, rounded to nearest even on the way back (NaN stays NaN).
struct Float32 {
  static V load_p(F d, const void* p, size_t i, size_t left) { return load(d, static_cast<const float*>(p) + i, left); }
  static void store_p(F d, V value, void* p, size_t i, size_t left) {
    store(d, value, static_cast<float*>(p) + i, left);
  }
};
struct Bfloat16 {
  static V load_p(F d, const void* p, size_t i, size_t left) {
    const hn::Rebind<uint16_t, F> d16;
    const hn::RebindToUnsigned<F> d32;
    const uint16_t* from = static_cast<const uint16_t*>(p) + i;
    alignas(64) uint16_t pad[hn::MaxLanes(F())] = {};
    if (left < hn::Lanes(d)) {
      for (size_t k = 0; k < left; ++k) pad[k] = from[k];
      from = pad;
    }
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, from))));
  }
  static void store_p(F d, V value, void* p, size_t i, size_t left) {
    const hn::RebindToUnsigned<F> d32;
    const hn::Rebind<uint16_t, F> d16;
    const auto bits = hn::BitCast(d32, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu))));
    const auto nan = hn::Set(d32, 0x7FC0u);
    const auto chosen = hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(value)), nan, rounded);
    // Values fit into 16 bits; the demotion saturates from signed 32 to unsigned 16 without a change.
    const auto narrow = hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<F>(), chosen));
    uint16_t* to = static_cast<uint16_t*>(p) + i;
    if (left >= hn::Lanes(d)) return hn::StoreU(narrow, d16, to);
    alignas(64) uint16_t pad[hn::MaxLanes(F())];
    hn::Store(narrow, d16, pad);
    for (size_t k = 0; k < left; ++k) to[k] = pad[k];
  }
};

template <class P>
void adamw_run(const Run& run, const AdamwScalars& s) {
  const F d;
  const V scale = hn::Set(d, s.grad_scale), w1 = hn::Set(d, s.one_minus_beta1), b2 = hn::Set(d, s.beta2),
          w2 = hn::Set(d, s.one_minus_beta2), inv = hn::Set(d, s.inv_sqrt_correction2), eps = hn::Set(d, s.eps),
          rate = hn::Set(d, s.step_size), decay = hn::Set(d, run.decay), zero = hn::Zero(d);
  const size_t n = static_cast<size_t>(run.n), lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t left = n - i;
    const V g = hn::Mul(load(d, run.g + i, left), scale);
    V m = load(d, run.m + i, left), v = load(d, run.v + i, left), p = P::load_p(d, run.p, i, left);
    m = hn::MulAdd(w1, hn::Sub(g, m), m);
    v = hn::MulAdd(hn::Mul(w2, g), g, hn::Mul(b2, v));
    const V denominator = hn::MulAdd(hn::Sqrt(v), inv, eps);
    p = hn::NegMulAdd(rate, hn::Div(m, denominator), hn::Mul(decay, p));
    store(d, m, run.m + i, left);
    store(d, v, run.v + i, left);
    P::store_p(d, p, run.p, i, left);
    if (s.clear_grad) store(d, zero, run.g + i, left);
  }
}

template <class P>
void sgd_run(const Run& run, const SgdScalars& s) {
  const F d;
  const V scale = hn::Set(d, s.grad_scale), momentum = hn::Set(d, s.momentum), lr = hn::Set(d, s.lr),
          decay = hn::Set(d, run.decay), zero = hn::Zero(d);
  const size_t n = static_cast<size_t>(run.n), lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t left = n - i;
    V p = P::load_p(d, run.p, i, left);
    V g = hn::MulAdd(decay, p, hn::Mul(load(d, run.g + i, left), scale));
    if (run.m != nullptr) {
      const V m = hn::MulAdd(momentum, load(d, run.m + i, left), g);
      store(d, m, run.m + i, left);
      g = s.nesterov ? hn::MulAdd(momentum, m, g) : m;
    }
    P::store_p(d, hn::NegMulAdd(lr, g, p), run.p, i, left);
    if (s.clear_grad) store(d, zero, run.g + i, left);
  }
}

void Adamw(const Run& run, const AdamwScalars& s) {
  run.bf16 ? adamw_run<Bfloat16>(run, s) : adamw_run<Float32>(run, s);
}
void Sgd(const Run& run, const SgdScalars& s) { run.bf16 ? sgd_run<Bfloat16>(run, s) : sgd_run<Float32>(run, s); }

void MuonMomentum(float* out, const float* g, float* m, int64_t count, float grad_scale, float momentum,
                  bool nesterov) {
  const F d;
  const V scale = hn::Set(d, grad_scale), mu = hn::Set(d, momentum), w = hn::Set(d, 1.0f - momentum);
  const size_t n = static_cast<size_t>(count), lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t left = n - i;
    const V gradient = hn::Mul(load(d, g + i, left), scale);
    V buffer = load(d, m + i, left);
    buffer = hn::MulAdd(w, hn::Sub(gradient, buffer), buffer);
    store(d, buffer, m + i, left);
    store(d, nesterov ? hn::MulAdd(mu, hn::Sub(buffer, gradient), gradient) : buffer, out + i, left);
  }
}

template <class P>
void muon_apply_run(void* p, const float* o, size_t n, float decay, float lr) {
  const F d;
  const V keep = hn::Set(d, decay), rate = hn::Set(d, lr);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t left = n - i;
    P::store_p(d, hn::NegMulAdd(rate, load(d, o + i, left), hn::Mul(keep, P::load_p(d, p, i, left))), p, i, left);
  }
}
void MuonApply(void* p, bool bf16, const float* o, int64_t n, float decay, float lr) {
  bf16 ? muon_apply_run<Bfloat16>(p, o, static_cast<size_t>(n), decay, lr)
       : muon_apply_run<Float32>(p, o, static_cast<size_t>(n), decay, lr);
}

template <class P>
void ema_run(float* e, const void* p, size_t n, float one_minus_decay) {
  const F d;
  const V w = hn::Set(d, one_minus_decay);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const size_t left = n - i;
    const V average = load(d, e + i, left);
    store(d, hn::MulAdd(w, hn::Sub(P::load_p(d, p, i, left), average), average), e + i, left);
  }
}
void Ema(float* e, const void* p, bool bf16, int64_t n, float one_minus_decay) {
  bf16 ? ema_run<Bfloat16>(e, p, static_cast<size_t>(n), one_minus_decay)
       : ema_run<Float32>(e, p, static_cast<size_t>(n), one_minus_decay);
}

// The squares of float32 values are exact in double, so fused or not makes no difference here.
double SquaredNorm(const float* x, int64_t count) {
  constexpr size_t kLanes = 16;
  const hn::CappedTag<double, kLanes> d;
  constexpr size_t width = hn::MaxLanes(d), groups = kLanes / width;
  const hn::Rebind<float, decltype(d)> half;
  hn::Vec<decltype(d)> sums[groups];
  for (auto& sum : sums) sum = hn::Zero(d);
  const size_t n = static_cast<size_t>(count), full = n / kLanes * kLanes;
  for (size_t i = 0; i < full; i += kLanes)
    for (size_t k = 0; k < groups; ++k) {
      const auto value = hn::PromoteTo(d, hn::LoadU(half, x + i + k * width));
      sums[k] = hn::MulAdd(value, value, sums[k]);
    }
  alignas(64) double lane[kLanes];
  for (size_t k = 0; k < groups; ++k) hn::StoreU(sums[k], d, lane + k * width);
  for (size_t i = full; i < n; ++i) lane[i - full] += static_cast<double>(x[i]) * x[i];
  for (size_t stride = 1; stride < kLanes; stride *= 2)
    for (size_t i = 0; i < kLanes; i += 2 * stride) lane[i] += lane[i + stride];
  return lane[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::optim::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::optim::kernels {
HWY_EXPORT(Adamw);
HWY_EXPORT(Sgd);
HWY_EXPORT(MuonMomentum);
HWY_EXPORT(MuonApply);
HWY_EXPORT(Ema);
HWY_EXPORT(SquaredNorm);

void adamw(const Run& run, const AdamwScalars& s) { HWY_DYNAMIC_DISPATCH(Adamw)(run, s); }
void sgd(const Run& run, const SgdScalars& s) { HWY_DYNAMIC_DISPATCH(Sgd)(run, s); }
void muon_momentum(float* out, const float* g, float* m, int64_t n, float grad_scale, float momentum, bool nesterov) {
  HWY_DYNAMIC_DISPATCH(MuonMomentum)(out, g, m, n, grad_scale, momentum, nesterov);
}
void muon_apply(void* p, bool bf16, const float* o, int64_t n, float decay, float lr) {
  HWY_DYNAMIC_DISPATCH(MuonApply)(p, bf16, o, n, decay, lr);
}
void ema(float* e, const void* p, bool bf16, int64_t n, float one_minus_decay) {
  HWY_DYNAMIC_DISPATCH(Ema)(e, p, bf16, n, one_minus_decay);
}
double squared_norm(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SquaredNorm)(x, n); }
}  // namespace cairn::optim::kernels
#endif
