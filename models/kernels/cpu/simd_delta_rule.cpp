#include "models/kernels/cpu/simd_delta_rule.h"

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_delta_rule.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_delta_rule_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

using tiles::Lay;
using tiles::Put;

void DeltaForward(const DeltaCall& call, const DeltaChunk* chunks, int64_t count, int64_t key_head) {
  static thread_local DeltaScratch scratch;
  const int64_t Dk = call.key_dim, Dv = call.value_dim, kp = call.key_padded, vp = call.value_padded;
  const int64_t group = call.value_heads / call.key_heads, first_head = key_head * group;
  const int64_t width = call.value_heads * Dv;
  scratch.Reserve(kRows * (3 * kp + 2 * vp + 4 * kRows) + group * kp * vp);
  float *k = scratch.Take(kRows * kp), *q = scratch.Take(kRows * kp), *kt = scratch.Take(kp * kRows);
  float *kk = scratch.Take(kRows * kRows), *qk = scratch.Take(kRows * kRows), *a = scratch.Take(kRows * kRows),
        *p = scratch.Take(kRows * kRows);
  float *x = scratch.Take(kRows * vp), *o = scratch.Take(kRows * vp), *states = scratch.Take(group * kp * vp);
  alignas(64) float factor[kRows], minus_gamma[kRows];
  Decays decays;

  if (call.state != nullptr) {
    std::fill_n(states, group * kp * vp, 0.0f);
    for (int64_t i = 0; i < group; ++i)
      tiles::Gather(call.state + (first_head + i) * Dk * Dv, Dv, Dk, Dv, vp, states + i * kp * vp);
  }
  for (int64_t c = 0; c < count; ++c) {
    const DeltaChunk& chunk = chunks[c];
    const int64_t rows = chunk.rows;
    const bool enters = !chunk.first || call.state != nullptr, leaves = !chunk.last || call.state != nullptr;
    LoadKeys(call.k + chunk.row * call.k_stride + key_head * Dk, call.k_stride, rows, Dk, kp, call.eps, 1.0f, k,
             factor);
    LoadKeys(call.q + chunk.row * call.q_stride + key_head * Dk, call.q_stride, rows, Dk, kp, call.eps, call.scale, q,
             factor);
    tiles::Transpose(k, kp, rows, kp, kt, kRows, kRows);
    tiles::Multiply<Put::set, Lay::rows>({k, kp, kt, kRows, kk, kRows}, rows, kRows, tiles::LowerColumns{kp});
    tiles::Multiply<Put::set, Lay::rows>({q, kp, kt, kRows, qk, kRows}, rows, kRows, tiles::LowerColumns{kp});

    for (int64_t i = 0; i < group; ++i) {
      const int64_t head = first_head + i, at = chunk.row * width + head * Dv;
      float* state = states + i * kp * vp;
      decays.Fill(call, chunk, head);
      DecayTiles<false>(decays, rows, kk, qk, a, p, nullptr);
      if (enters && call.states != nullptr)
        std::copy_n(state, kp * vp, call.states + (chunk.state * call.value_heads + head) * kp * vp);

      // X
      tiles::Gather(call.v + chunk.row * call.v_stride + head * Dv, call.v_stride, rows, Dv, vp, x);
      if (enters) {
        for (int64_t r = 0; r < kRows; r += kLanes) Store(Neg(Load(decays.gamma + r)), minus_gamma + r);
        tiles::Multiply<Put::blended, Lay::rows>({k, kp, state, vp, x, vp, minus_gamma}, rows, vp, tiles::Full{vp, kp});
      }
      tiles::Solve<false>(a, kRows, x, vp, rows, vp);
      if (call.kept != nullptr) tiles::Scatter(x, vp, rows, Dv, call.kept + at, width);

      // O
      tiles::ScaleRows(x, rows, vp, decays.beta);
      tiles::Multiply<Put::set, Lay::rows>({p, kRows, x, vp, o, vp}, rows, vp, tiles::LowerTerms{vp, rows});
      if (enters)
        tiles::Multiply<Put::blended, Lay::rows>({q, kp, state, vp, o, vp, decays.gamma}, rows, vp,
                                                 tiles::Full{vp, kp});
      tiles::Scatter(o, vp, rows, Dv, call.out + at, width);

      // S'
      if (!leaves) continue;
      tiles::ScaleRows(x, rows, vp, decays.kappa);
      tiles::Product next{k, kp, x, vp, state, vp};
      next.decay = decays.total;
      if (enters) {
        tiles::Multiply<Put::decayed, Lay::columns>(next, kp, vp, tiles::Full{vp, rows});
      } else {
        tiles::Multiply<Put::set, Lay::columns>(next, kp, vp, tiles::Full{vp, rows});
      }
    }
  }
  if (call.state != nullptr) {
    for (int64_t i = 0; i < group; ++i)
      tiles::Scatter(states + i * kp * vp, vp, Dk, Dv, call.state + (first_head + i) * Dk * Dv, Dv);
  }
}

// Sixteen times kN columns of one token: u = beta (v - exp(g) S^T k), S = exp(g) S + k u^T, o = S^T q.
template <size_t kN, class Part>
HWY_INLINE void DecodeColumns(const float* k, const float* q, int64_t Dk, float decay, float beta, const float* v,
                              float* state, int64_t Dv, float* out, Part part) {
  F16 sum[kN], o[kN];
  for (size_t n = 0; n < kN; ++n) sum[n] = o[n] = Zero();
  for (int64_t d = 0; d < Dk; ++d) {
    const F16 kd = Set(k[d]);
    for (size_t n = 0; n < kN; ++n) sum[n] = MulAdd(kd, Load(state + d * Dv + n * kLanes, part), sum[n]);
  }
  const F16 e = Set(decay), b = Set(beta);
  for (size_t n = 0; n < kN; ++n) sum[n] = b * NegMulAdd(e, sum[n], Load(v + n * kLanes, part));
  for (int64_t d = 0; d < Dk; ++d) {
    const F16 kd = Set(k[d]), qd = Set(q[d]);
    for (size_t n = 0; n < kN; ++n) {
      float* at = state + d * Dv + n * kLanes;
      const F16 s = MulAdd(kd, sum[n], e * Load(at, part));
      Store(s, at, part);
      o[n] = MulAdd(qd, s, o[n]);
    }
  }
  for (size_t n = 0; n < kN; ++n) Store(o[n], out + n * kLanes, part);
}

void DeltaDecode(const DeltaCall& call, int64_t rows, int64_t head) {
  static thread_local DeltaScratch scratch;
  const int64_t Dk = call.key_dim, Dv = call.value_dim, kp = call.key_padded;
  const int64_t key_head = head / (call.value_heads / call.key_heads);
  scratch.Reserve(2 * kp);
  float *k = scratch.Take(kp), *q = scratch.Take(kp);
  float* state = call.state + head * Dk * Dv;
  for (int64_t n = 0; n < rows; ++n) {
    float factor;
    LoadKeys(call.k + n * call.k_stride + key_head * Dk, 0, 1, Dk, kp, call.eps, 1.0f, k, &factor);
    LoadKeys(call.q + n * call.q_stride + key_head * Dk, 0, 1, Dk, kp, call.eps, call.scale, q, &factor);
    alignas(64) float decay[kLanes];
    Store(Exp(Set(call.g[n * call.value_heads + head])), decay);
    const float beta = call.beta[n * call.value_heads + head];
    const float* v = call.v + n * call.v_stride + head * Dv;
    float* out = call.out + (n * call.value_heads + head) * Dv;
    int64_t c = 0;
    for (; c + 64 <= Dv; c += 64) DecodeColumns<4>(k, q, Dk, decay[0], beta, v + c, state + c, Dv, out + c, Whole{});
    for (; c + 16 <= Dv; c += 16) DecodeColumns<1>(k, q, Dk, decay[0], beta, v + c, state + c, Dv, out + c, Whole{});
    if (c < Dv)
      DecodeColumns<1>(k, q, Dk, decay[0], beta, v + c, state + c, Dv, out + c, First{static_cast<size_t>(Dv - c)});
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(DeltaForward);
HWY_EXPORT(DeltaDecode);

void simd_delta_forward(const DeltaCall& call, const DeltaChunk* chunks, int64_t count, int64_t key_head) {
  HWY_DYNAMIC_DISPATCH(DeltaForward)(call, chunks, count, key_head);
}
void simd_delta_decode(const DeltaCall& call, int64_t rows, int64_t value_head) {
  HWY_DYNAMIC_DISPATCH(DeltaDecode)(call, rows, value_head);
}

}  // namespace cairn::kernels
#endif
