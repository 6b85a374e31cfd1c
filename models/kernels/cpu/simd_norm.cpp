#include "models/kernels/cpu/simd_norm.h"

#include <cmath>

#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_norm.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

template <bool kCentre>
HWY_INLINE void ForwardRow(const NormForward& job, size_t r) {
  const size_t columns = job.columns;
  const float scale = 1.0f / static_cast<float>(columns);
  const float* s = job.x.row(r);
  F16 total = Zero(), squares = Zero();
  if (job.residual) {
    const float *x = s, *residual = job.residual + r * columns;
    float* sum = job.sum + r * columns;
    ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Load(x + i, part) + Load(residual + i, part);
      Store(a, sum + i, part);
      if (kCentre) total = total + a;
      if (!kCentre) squares = MulAdd(a, a, squares);
    });
    s = sum;
  } else {
    ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Load(s + i, part);
      if (kCentre) total = total + a;
      if (!kCentre) squares = MulAdd(a, a, squares);
    });
  }
  float mean = 0;
  if (kCentre) {  // the variance in a second pass: no cancellation
    mean = ReduceSum(total) * scale;
    const F16 m = Set(mean);
    ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 a = Load(s + i, part, m) - m;
      squares = MulAdd(a, a, squares);
    });
    job.mean[r] = mean;
  }
  const float rstd = 1.0f / std::sqrt(ReduceSum(squares) * scale + job.eps);
  job.rstd[r] = rstd;

  float* y = job.y + r * columns;
  const float *weight = job.weight, *bias = job.bias;
  const F16 m = Set(mean), k = Set(rstd), offset = Set(job.offset);
  ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 a = Load(s + i, part);
    if (kCentre) a = a - m;
    a = a * k;
    const F16 w = Load(weight + i, part) + offset;
    Store(kCentre && bias ? MulAdd(a, w, Load(bias + i, part)) : a * w, y + i, part);
  });
}

void Forward(const NormForward& job) {
#pragma omp parallel for schedule(static) if (job.rows * job.columns >= kParallelElements)
  for (size_t r = 0; r < job.rows; ++r) {
    if (job.centre)
      ForwardRow<true>(job, r);
    else
      ForwardRow<false>(job, r);
  }
}

// With n = (s - mean) * rstd and g = dy * w:  ds = rstd * (g - mean(g) - n * mean(g * n)), mean(g) only in LayerNorm.
// dweight, dbias: where this piece of rows adds up, or null.
template <bool kCentre>
HWY_INLINE void BackwardRow(const NormBackward& job, size_t r, float* dweight, float* dbias) {
  const size_t columns = job.columns;
  const float scale = 1.0f / static_cast<float>(columns);
  const float *dy = job.dy.row(r), *s = job.sum.row(r), *weight = job.weight;
  const F16 m = Set(kCentre ? job.mean[r] : 0.0f), k = Set(job.rstd[r]), offset = Set(job.offset);
  F16 dot = Zero(), total = Zero();
  ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
    const F16 d = Load(dy + i, part);
    F16 n = Load(s + i, part);
    if (kCentre) n = n - m;
    n = n * k;
    const F16 dn = d * n;  // zero beyond the row, as d is
    const F16 w = Load(weight + i, part) + offset;
    dot = MulAdd(dn, w, dot);
    if (kCentre) total = MulAdd(d, w, total);
    if (dweight) Store(Load(dweight + i, part) + dn, dweight + i, part);
    if (kCentre && dbias) Store(Load(dbias + i, part) + d, dbias + i, part);
  });
  const F16 b = Set(ReduceSum(dot) * scale), a = Set(kCentre ? ReduceSum(total) * scale : 0.0f);

  float* out = job.out.row(r);
  const float* dsum = job.dsum ? job.dsum + r * columns : nullptr;
  ForColumns(columns, [&](size_t i, auto part) CAIRN_LAMBDA {
    F16 n = Load(s + i, part);
    if (kCentre) n = n - m;
    n = n * k;
    F16 g = Load(dy + i, part) * (Load(weight + i, part) + offset);
    if (kCentre) g = g - a;
    g = NegMulAdd(n, b, g);
    Store(dsum ? MulAdd(g, k, Load(dsum + i, part)) : g * k, out + i, part);
  });
}

void AddRows(const float* from, size_t rows, size_t columns, float* to) {
#pragma omp parallel for schedule(static) if (rows * columns >= kParallelElements)
  for (size_t block = 0; block < (columns + 63) / 64; ++block) {
    const size_t begin = block * 64;
    ForColumns(columns - begin < 64 ? columns - begin : 64, [&](size_t i, auto part) CAIRN_LAMBDA {
      F16 sum = Load(from + begin + i, part);
      for (size_t r = 1; r < rows; ++r) sum = sum + Load(from + r * columns + begin + i, part);
      Store(Load(to + begin + i, part) + sum, to + begin + i, part);
    });
  }
}

void Backward(const NormBackward& job) {
  const size_t columns = job.columns, pieces = piece_count(job.rows), size = pieces * columns;
  float* partial_weight = job.dweight ? job.partial : nullptr;
  float* partial_bias = job.dbias ? job.partial + (job.dweight ? size : 0) : nullptr;
#pragma omp parallel for schedule(static) if (job.rows * columns >= kParallelElements)
  for (size_t piece = 0; piece < pieces; ++piece) {
    float* dweight = partial_weight ? partial_weight + piece * columns : nullptr;
    float* dbias = partial_bias ? partial_bias + piece * columns : nullptr;
    if (dweight) std::fill_n(dweight, columns, 0.0f);
    if (dbias) std::fill_n(dbias, columns, 0.0f);
    const size_t end = piece_begin(piece + 1, pieces, job.rows);
    for (size_t r = piece_begin(piece, pieces, job.rows); r < end; ++r) {
      if (job.mean)
        BackwardRow<true>(job, r, dweight, dbias);
      else
        BackwardRow<false>(job, r, dweight, nullptr);
    }
  }
  if (partial_weight) AddRows(partial_weight, pieces, columns, job.dweight);
  if (partial_bias) AddRows(partial_bias, pieces, columns, job.dbias);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(Forward);
HWY_EXPORT(Backward);
HWY_EXPORT(AddRows);

void simd_norm_forward(const NormForward& job) { HWY_DYNAMIC_DISPATCH(Forward)(job); }
void simd_norm_backward(const NormBackward& job) { HWY_DYNAMIC_DISPATCH(Backward)(job); }
void simd_add_rows(const float* from, size_t rows, size_t columns, float* to) {
  HWY_DYNAMIC_DISPATCH(AddRows)(from, rows, columns, to);
}
}  // namespace cairn::kernels
#endif
