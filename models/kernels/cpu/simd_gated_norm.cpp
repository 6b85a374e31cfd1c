#include "models/kernels/cpu/simd_gated_norm.h"

#include <cmath>
#include <vector>

#include "models/kernels/cpu/pieces.h"
#include "models/kernels/cpu/simd_norm.h"
#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_gated_norm.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

HWY_INLINE int64_t At(const GateRows& rows, int64_t n, int64_t head, int64_t columns) {
  return n * rows.token + head / rows.group * rows.block + head % rows.group * columns;
}

void GatedForward(const GatedNorm& job) {
  const int64_t rows = job.tokens * job.heads, columns = job.columns;
#pragma omp parallel for schedule(static) if (rows * columns >= static_cast <int64_t>(kParallelElements) / 4)
  for (int64_t r = 0; r < rows; ++r) {
    const float *x = job.x + r * columns, *z = job.z + At(job.z_rows, r / job.heads, r % job.heads, columns);
    F16 squares = Zero();
    ForColumns(columns, [&](size_t c, auto part) CAIRN_LAMBDA {
      const F16 a = Load(x + c, part);
      squares = MulAdd(a, a, squares);
    });
    const float rstd = 1.0f / std::sqrt(ReduceSum(squares) / static_cast<float>(columns) + job.eps);
    if (job.rstd) job.rstd[r] = rstd;
    const F16 k = Set(rstd);
    float* y = job.y + r * columns;
    ForColumns(columns, [&](size_t c, auto part) CAIRN_LAMBDA {
      const F16 g = Load(z + c, part);
      Store(Load(x + c, part) * k * Load(job.weight + c, part) * (g / (Set(1.0f) + Exp(Neg(g)))), y + c, part);
    });
  }
}

// With n = x * rstd, s = silu(z), e = dy * weight * s: dx = rstd (e - n mean(e n)), dz = dy weight n s',
// dweight += dy n s.
HWY_INLINE void GatedBackwardRow(const GatedNorm& job, int64_t r, float* dweight) {
  const int64_t columns = job.columns, n = r / job.heads, head = r % job.heads;
  const float *x = job.x + r * columns, *dy = job.dy + r * columns, *z = job.z + At(job.z_rows, n, head, columns);
  float *dx = job.dx + r * columns, *dz = job.dz + At(job.dz_rows, n, head, columns);
  const F16 k = Set(job.rstd[r]);
  F16 dot = Zero();
  ForColumns(columns, [&](size_t c, auto part) CAIRN_LAMBDA {
    const F16 g = Load(z + c, part), e = Exp(Neg(g)), sigmoid = Set(1.0f) / (Set(1.0f) + e), value = g * sigmoid;
    const F16 slope = MulAdd(value, e * sigmoid, sigmoid);
    const F16 d = Load(dy + c, part), normed = Load(x + c, part) * k, w = Load(job.weight + c, part);
    const F16 dn = d * normed;
    Store(dn * w * slope, dz + c, part);
    if (dweight) Store(MulAdd(dn, value, Load(dweight + c, part)), dweight + c, part);
    const F16 inner = d * w * value;
    dot = MulAdd(inner, normed, dot);
    Store(inner, dx + c, part);
  });
  const F16 mean = Set(ReduceSum(dot) / static_cast<float>(columns));
  ForColumns(columns, [&](size_t c, auto part) CAIRN_LAMBDA {
    Store(k * NegMulAdd(Load(x + c, part) * k, mean, Load(dx + c, part)), dx + c, part);
  });
}

void GatedBackward(const GatedNorm& job) {
  const size_t rows = static_cast<size_t>(job.tokens * job.heads), pieces = piece_count(rows);
#pragma omp parallel for schedule(static) if (rows * job.columns >= kParallelElements / 4)
  for (size_t piece = 0; piece < pieces; ++piece) {
    float* dweight = job.dweight ? job.partial + piece * job.columns : nullptr;
    if (dweight) std::fill_n(dweight, job.columns, 0.0f);
    const size_t end = piece_begin(piece + 1, pieces, rows);
    for (size_t r = piece_begin(piece, pieces, rows); r < end; ++r) GatedBackwardRow(job, r, dweight);
  }
  if (job.dweight) simd_add_rows(job.partial, pieces, job.columns, job.dweight);
}

void GateForward(const SigmoidGate& job) {
  const int64_t rows = job.tokens * job.heads, columns = job.columns;
#pragma omp parallel for schedule(static) if (rows * columns >= static_cast <int64_t>(kParallelElements) / 4)
  for (int64_t r = 0; r < rows; ++r) {
    const float *x = job.x + r * columns, *z = job.z + At(job.z_rows, r / job.heads, r % job.heads, columns);
    float* y = job.y + r * columns;
    ForColumns(columns, [&](size_t c, auto part)
                            CAIRN_LAMBDA { Store(Load(x + c, part) * Sigmoid(Load(z + c, part)), y + c, part); });
  }
}

void GateBackward(const SigmoidGate& job) {
  const int64_t rows = job.tokens * job.heads, columns = job.columns;
#pragma omp parallel for schedule(static) if (rows * columns >= static_cast <int64_t>(kParallelElements) / 4)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t n = r / job.heads, head = r % job.heads;
    const float *x = job.x + r * columns, *dy = job.dy + r * columns, *z = job.z + At(job.z_rows, n, head, columns);
    float *dx = job.dx + r * columns, *dz = job.dz + At(job.dz_rows, n, head, columns);
    ForColumns(columns, [&](size_t c, auto part) CAIRN_LAMBDA {
      const F16 g = Load(z + c, part), d = Load(dy + c, part), s = Sigmoid(g);
      Store(d * Load(x + c, part) * s * Sigmoid(Neg(g)), dz + c, part);  // 1 - sigmoid does not cancel so
      Store(d * s, dx + c, part);
    });
  }
}

// log(1 + e) for e in [0, 1]: the rounding of 1 + e is divided out.
HWY_INLINE F16 LogOnePlus(F16 e) {
  const F16 u = Set(1.0f) + e, d = u - Set(1.0f);
  return IfThenElse(Gt(d, Zero()), Log(u) * (e / d), e);
}
HWY_INLINE F16 Softplus(F16 x) { return Max(x, Zero()) + LogOnePlus(Exp(Neg(Abs(x)))); }

// b and a of one row, head by head.
HWY_INLINE void Ungroup(const DeltaGates& job, int64_t n, float* b, float* a) {
  const int64_t group = job.heads / job.key_heads;
  const float* from = job.ba + n * job.ba_stride;
  for (int64_t h = 0; h < job.heads; ++h) {
    const float* at = from + h / group * 2 * group + h % group;
    b[h] = at[0], a[h] = at[group];
  }
}

void GatesForward(const DeltaGates& job) {
  const int64_t heads = job.heads;
#pragma omp parallel if (job.rows * heads >= static_cast <int64_t>(kParallelElements) / 16)
  {
    std::vector<float> b(heads), a(heads);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < job.rows; ++n) {
      Ungroup(job, n, b.data(), a.data());
      ForColumns(heads, [&](size_t h, auto part) CAIRN_LAMBDA {
        Store(Sigmoid(Load(b.data() + h, part)), job.beta + n * heads + h, part);
        const F16 step = Softplus(Load(a.data() + h, part) + Load(job.dt_bias + h, part));
        Store(Neg(Exp(Load(job.A_log + h, part))) * step, job.g + n * heads + h, part);
      });
    }
  }
}

void GatesBackward(const DeltaGates& job) {
  const int64_t heads = job.heads, group = heads / job.key_heads;
  const size_t rows = static_cast<size_t>(job.rows), pieces = piece_count(rows);
#pragma omp parallel if (job.rows * heads >= static_cast <int64_t>(kParallelElements) / 16)
  {
    std::vector<float> b(heads), a(heads), db(heads), da(heads);
#pragma omp for schedule(static)
    for (size_t piece = 0; piece < pieces; ++piece) {
      float *dA = job.partial + piece * heads, *ddt = job.partial + (pieces + piece) * heads;
      std::fill_n(dA, heads, 0.0f);
      std::fill_n(ddt, heads, 0.0f);
      const int64_t end = static_cast<int64_t>(piece_begin(piece + 1, pieces, rows));
      for (int64_t n = static_cast<int64_t>(piece_begin(piece, pieces, rows)); n < end; ++n) {
        Ungroup(job, n, b.data(), a.data());
        ForColumns(heads, [&](size_t h, auto part) CAIRN_LAMBDA {
          const F16 beta = Load(job.beta + n * heads + h, part), dg = Load(job.dg + n * heads + h, part);
          // 1 - beta = sigmoid(-b) does not cancel.
          Store(Load(job.dbeta + n * heads + h, part) * beta * Sigmoid(Neg(Load(b.data() + h, part))), db.data() + h,
                part);
          const F16 rate = Neg(Exp(Load(job.A_log + h, part)));
          const F16 d = dg * rate * Sigmoid(Load(a.data() + h, part) + Load(job.dt_bias + h, part));
          Store(d, da.data() + h, part);
          Store(MulAdd(dg, Load(job.g + n * heads + h, part), Load(dA + h, part)), dA + h, part);
          Store(Load(ddt + h, part) + d, ddt + h, part);
        });
        float* to = job.dba + n * job.dba_stride;
        for (int64_t h = 0; h < heads; ++h) {
          float* at = to + h / group * 2 * group + h % group;
          at[0] = db[h], at[group] = da[h];
        }
      }
    }
  }
  if (job.dA_log) simd_add_rows(job.partial, pieces, heads, job.dA_log);
  if (job.ddt_bias) simd_add_rows(job.partial + pieces * heads, pieces, heads, job.ddt_bias);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(GatedForward);
HWY_EXPORT(GatedBackward);
HWY_EXPORT(GateForward);
HWY_EXPORT(GateBackward);
HWY_EXPORT(GatesForward);
HWY_EXPORT(GatesBackward);

void simd_gated_norm_forward(const GatedNorm& job) { HWY_DYNAMIC_DISPATCH(GatedForward)(job); }
void simd_gated_norm_backward(const GatedNorm& job) { HWY_DYNAMIC_DISPATCH(GatedBackward)(job); }
void simd_sigmoid_gate_forward(const SigmoidGate& job) { HWY_DYNAMIC_DISPATCH(GateForward)(job); }
void simd_sigmoid_gate_backward(const SigmoidGate& job) { HWY_DYNAMIC_DISPATCH(GateBackward)(job); }
void simd_delta_gates_forward(const DeltaGates& job) { HWY_DYNAMIC_DISPATCH(GatesForward)(job); }
void simd_delta_gates_backward(const DeltaGates& job) { HWY_DYNAMIC_DISPATCH(GatesBackward)(job); }
}  // namespace cairn::kernels
#endif
