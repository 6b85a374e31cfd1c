#include "models/kernels/cpu/simd_delta_rule.h"
#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_delta_rule_backward.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_delta_rule_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

using tiles::Lay;
using tiles::Put;

// to[r] += x[r] . y[r]; columns a multiple of 16.
HWY_INLINE void AddRowDots(const float* x, const float* y, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    F16 sum = Zero();
    for (int64_t c = 0; c < columns; c += kLanes)
      sum = MulAdd(Load(x + r * columns + c), Load(y + r * columns + c), sum);
    to[r] += ReduceSum(sum);
  }
}
HWY_INLINE void AddTo(const float* x, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kLanes) Store(Load(to + i) + Load(x + i), to + i);
}

// The gradient of x * factor, factor = scale / sqrt(|x|^2 + eps), from that of the product: y = x * factor as it was
// used; written to a row of `dim`.
HWY_INLINE void UnloadKeys(const float* dy, const float* y, int64_t rows, int64_t dim, int64_t padded, float eps,
                           float scale, const float* factor, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *d = dy + r * padded, *x = y + r * padded;
    float along = 0;  // y . dy / scale^2: of the unit vectors
    if (eps > 0) {
      F16 sum = Zero();
      for (int64_t c = 0; c < padded; c += kLanes) sum = MulAdd(Load(x + c), Load(d + c), sum);
      along = ReduceSum(sum) / (scale * scale);
    }
    const F16 f = Set(factor[r]), a = Set(along);
    float* out = to + r * stride;
    ForColumns(dim, [&](size_t c, auto part)
                        CAIRN_LAMBDA { Store(f * NegMulAdd(a, Load(x + c), Load(d + c)), out + c, part); });
  }
}

// Gradients of the scores, of one head: dp = dO U^T and dm = dV U^T (the gradient of D K K^T is minus that), both
// [64, 64] where their lower triangle holds. Adds D dp to dqk and -D dm to dkk (zero from the diagonal on), and to
// dgate what D owes G: rows minus columns of the products with the scores, the diagonal left out, where D is 1.
HWY_INLINE void ScoreGradients(int64_t rows, const float* d, const float* kk, const float* qk, const float* dp,
                               const float* dm, float* dqk, float* dkk, float* dgate) {
  F16 columns[kRowQuads];
  for (int64_t quad = 0; quad < kRowQuads; ++quad) columns[quad] = Zero();
  for (int64_t i = 0; i < rows; ++i) {
    const F16 row = Set(static_cast<float>(i));
    F16 sum = Zero();
    for (int64_t quad = 0; quad * int64_t{kLanes} <= i; ++quad) {
      const int64_t at = i * kRows + quad * int64_t{kLanes};
      const M16 below = Lt(ColumnsOf(quad), row);
      const F16 decay = Load(d + at);  // zero above the diagonal
      const F16 a = decay * Load(dp + at), b = IfThenElseZero(below, decay * Load(dm + at));
      Store(Load(dqk + at) + a, dqk + at);
      Store(Load(dkk + at) - b, dkk + at);
      const F16 h = IfThenElseZero(below, a * Load(qk + at) - b * Load(kk + at));
      sum = sum + h;
      columns[quad] = columns[quad] + h;
    }
    dgate[i] += ReduceSum(sum);
  }
  for (int64_t quad = 0; quad < kRowQuads; ++quad)
    Store(Load(dgate + quad * kLanes) - columns[quad], dgate + quad * kLanes);
}

// Chunks from the last to the first. dS is the gradient of the state that leaves a chunk, and becomes that of the one
// that enters it. With R = U's right side beta * (V - diag(gamma) K S):
//   dU = P^T dO + diag(kappa) K dS,  (1 + A)^T dR = dU,  dV = diag(beta) dR,  dbeta = rows of dR * X
//   dP = dO U^T,  dM = -dV U^T  (M = D * K K^T)
//   dQ = diag(gamma) dO S^T + (D * dP) K
//   dK = -diag(gamma) dV S^T + diag(kappa) U dS^T + (D * dP)^T Q + (D * dM + its transpose) K
//   dS <- exp(G[C]) dS + Q^T diag(gamma) dO - K^T diag(gamma) dV
void DeltaBackward(const DeltaCall& call, const DeltaGradients& out, const DeltaChunk* chunks, int64_t count,
                   int64_t key_head) {
  static thread_local DeltaScratch scratch;
  const int64_t Dk = call.key_dim, Dv = call.value_dim, kp = call.key_padded, vp = call.value_padded;
  const int64_t group = call.value_heads / call.key_heads, first_head = key_head * group;
  const int64_t width = call.value_heads * Dv;
  scratch.Reserve(kRows * (6 * kp + 5 * vp + 9 * kRows) + (group + 2) * kp * vp);
  const auto tile = [&](int64_t columns) { return scratch.Take(kRows * columns); };
  float *k = tile(kp), *q = tile(kp), *kt = tile(kp), *dq = tile(kp), *dk = tile(kp), *part = tile(kp);
  float *x = tile(vp), *u = tile(vp), *ut = tile(vp), *dout = tile(vp), *dr = tile(vp);
  float *kk = tile(kRows), *qk = tile(kRows), *a = tile(kRows), *p = tile(kRows), *d = tile(kRows), *dp = tile(kRows),
        *dm = tile(kRows), *dqk = tile(kRows), *dkk = tile(kRows);
  float *dstates = scratch.Take(group * kp * vp), *state_t = scratch.Take(kp * vp), *dstate_t = scratch.Take(kp * vp);
  alignas(64) float q_factor[kRows], k_factor[kRows], minus_gamma[kRows], dgate[kRows], dkappa[kRows], dbeta[kRows];
  Decays decays;

  for (int64_t c = count - 1; c >= 0; --c) {
    const DeltaChunk& chunk = chunks[c];
    const int64_t rows = chunk.rows;
    const bool enters = !chunk.first, leaves = !chunk.last;
    LoadKeys(call.k + chunk.row * call.k_stride + key_head * Dk, call.k_stride, rows, Dk, kp, call.eps, 1.0f, k,
             k_factor);
    LoadKeys(call.q + chunk.row * call.q_stride + key_head * Dk, call.q_stride, rows, Dk, kp, call.eps, call.scale, q,
             q_factor);
    tiles::Transpose(k, kp, rows, kp, kt, kRows, kRows);
    tiles::Multiply<Put::set, Lay::rows>({k, kp, kt, kRows, kk, kRows}, rows, kRows, tiles::LowerColumns{kp});
    tiles::Multiply<Put::set, Lay::rows>({q, kp, kt, kRows, qk, kRows}, rows, kRows, tiles::LowerColumns{kp});
    std::fill_n(dqk, rows * kRows, 0.0f);
    std::fill_n(dkk, rows * kRows, 0.0f);
    std::fill_n(dq, rows * kp, 0.0f);
    std::fill_n(dk, rows * kp, 0.0f);

    for (int64_t i = 0; i < group; ++i) {
      const int64_t head = first_head + i, at = chunk.row * width + head * Dv;
      float* dstate = dstates + i * kp * vp;
      decays.Fill(call, chunk, head);
      DecayTiles<true>(decays, rows, kk, qk, a, p, d);
      for (int64_t r = 0; r < kRows; r += kLanes) Store(Neg(Load(decays.gamma + r)), minus_gamma + r);
      std::fill_n(dgate, kRows, 0.0f);
      std::fill_n(dkappa, kRows, 0.0f);
      std::fill_n(dbeta, kRows, 0.0f);
      tiles::Gather(call.kept + at, width, rows, Dv, vp, x);
      tiles::Gather(out.dout + at, width, rows, Dv, vp, dout);
      std::copy_n(x, rows * vp, u);
      tiles::ScaleRows(u, rows, vp, decays.beta);
      tiles::Transpose(u, vp, rows, vp, ut, kRows, kRows);

      // dR
      if (leaves) {
        tiles::Multiply<Put::scaled, Lay::rows>({k, kp, dstate, vp, dr, vp, decays.kappa}, rows, vp,
                                                tiles::Full{vp, kp});
        tiles::Multiply<Put::add, Lay::columns>({p, kRows, dout, vp, dr, vp}, rows, vp, tiles::UpperTerms{vp, rows});
      } else {
        tiles::Multiply<Put::set, Lay::columns>({p, kRows, dout, vp, dr, vp}, rows, vp, tiles::UpperTerms{vp, rows});
      }
      tiles::Solve<true>(a, kRows, dr, vp, rows, vp);
      AddRowDots(dr, x, rows, vp, dbeta);
      tiles::ScaleRows(dr, rows, vp, decays.beta);  // dV from here on
      float* dv = dr;
      tiles::Scatter(dv, vp, rows, Dv, out.dv + chunk.row * out.dv_stride + head * Dv, out.dv_stride);

      // scores
      tiles::Multiply<Put::set, Lay::rows>({dout, vp, ut, kRows, dp, kRows}, rows, kRows, tiles::LowerColumns{vp});
      tiles::Multiply<Put::set, Lay::rows>({dv, vp, ut, kRows, dm, kRows}, rows, kRows, tiles::LowerColumns{vp});
      ScoreGradients(rows, d, kk, qk, dp, dm, dqk, dkk, dgate);

      // what passed through the states
      if (enters) {
        tiles::Transpose(call.states + (chunk.state * call.value_heads + head) * kp * vp, vp, kp, vp, state_t, kp, kp);
        tiles::Multiply<Put::scaled, Lay::rows>({dout, vp, state_t, kp, part, kp, decays.gamma}, rows, kp,
                                                tiles::Full{kp, vp});
        AddRowDots(q, part, rows, kp, dgate);
        AddTo(part, rows * kp, dq);
        tiles::Multiply<Put::scaled, Lay::rows>({dv, vp, state_t, kp, part, kp, minus_gamma}, rows, kp,
                                                tiles::Full{kp, vp});
        AddRowDots(k, part, rows, kp, dgate);
        AddTo(part, rows * kp, dk);
      }
      double carried = 0;  // gradient of G[C]
      if (leaves) {
        tiles::Transpose(dstate, vp, kp, vp, dstate_t, kp, kp);
        tiles::Multiply<Put::scaled, Lay::rows>({u, vp, dstate_t, kp, part, kp, decays.kappa}, rows, kp,
                                                tiles::Full{kp, vp});
        AddRowDots(k, part, rows, kp, dkappa);
        AddTo(part, rows * kp, dk);
        for (int64_t r = 0; r < rows; ++r) carried += dkappa[r];
        if (enters) {
          F16 sum = Zero();
          for (int64_t n = 0; n < kp * vp; n += kLanes) sum = MulAdd(Load(state_t + n), Load(dstate_t + n), sum);
          carried += static_cast<double>(decays.total) * ReduceSum(sum);
        }
      }
      float *dg = out.dg + chunk.row * call.value_heads + head, *db = out.dbeta + chunk.row * call.value_heads + head;
      for (int64_t r = rows - 1; r >= 0; --r) {
        carried += static_cast<double>(dgate[r]) - dkappa[r];
        dg[r * call.value_heads] = static_cast<float>(carried);
        db[r * call.value_heads] = dbeta[r];
      }

      // dS
      if (!enters) continue;
      tiles::ScaleRows(dout, rows, vp, decays.gamma);
      tiles::ScaleRows(dv, rows, vp, minus_gamma);
      tiles::Product before{q, kp, dout, vp, dstate, vp};
      before.decay = decays.total;
      if (leaves) {
        tiles::Multiply<Put::decayed, Lay::columns>(before, kp, vp, tiles::Full{vp, rows});
      } else {
        tiles::Multiply<Put::set, Lay::columns>(before, kp, vp, tiles::Full{vp, rows});
      }
      tiles::Multiply<Put::add, Lay::columns>({k, kp, dv, vp, dstate, vp}, kp, vp, tiles::Full{vp, rows});
    }

    tiles::Multiply<Put::add, Lay::rows>({dqk, kRows, k, kp, dq, kp}, rows, kp, tiles::LowerTerms{kp, rows});
    tiles::Multiply<Put::add, Lay::columns>({dqk, kRows, q, kp, dk, kp}, rows, kp, tiles::UpperTerms{kp, rows});
    tiles::Multiply<Put::add, Lay::rows>({dkk, kRows, k, kp, dk, kp}, rows, kp, tiles::LowerTerms{kp, rows});
    tiles::Multiply<Put::add, Lay::columns>({dkk, kRows, k, kp, dk, kp}, rows, kp, tiles::UpperTerms{kp, rows});
    UnloadKeys(dq, q, rows, Dk, kp, call.eps, call.scale, q_factor, out.dq + chunk.row * out.dq_stride + key_head * Dk,
               out.dq_stride);
    UnloadKeys(dk, k, rows, Dk, kp, call.eps, 1.0f, k_factor, out.dk + chunk.row * out.dk_stride + key_head * Dk,
               out.dk_stride);
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(DeltaBackward);

void simd_delta_backward(const DeltaCall& call, const DeltaGradients& gradients, const DeltaChunk* chunks,
                         int64_t count, int64_t key_head) {
  HWY_DYNAMIC_DISPATCH(DeltaBackward)(call, gradients, chunks, count, key_head);
}

}  // namespace cairn::kernels
#endif
