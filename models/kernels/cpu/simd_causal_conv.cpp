#include "models/kernels/cpu/simd_causal_conv.h"

#include <algorithm>

#include "models/kernels/cpu/pieces.h"
#include "models/kernels/cpu/simd_norm.h"
#include "models/kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_causal_conv.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/lanes16.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// What SiLU is given: taps from the row itself backward.
template <int64_t kTaps, class Part>
HWY_INLINE F16 Sum(const float* x, int64_t x_stride, const float* weight, int64_t width, int64_t before, Part part) {
  F16 sum = Zero();
#pragma GCC unroll 8
  for (int64_t j = 0; j < kTaps; ++j)
    if (j <= before) sum = MulAdd(Load(weight + (kTaps - 1 - j) * width, part), Load(x - j * x_stride, part), sum);
  return sum;
}

template <int64_t kTaps>
void ForwardRows(const ConvCall& call, float* y) {
#pragma omp parallel for schedule(static) if (call.rows * call.width >= static_cast <int64_t>(kParallelElements) / 4)
  for (int64_t n = 0; n < call.rows; ++n) {
    for (int64_t i = 0; i < call.run_count; ++i) {
      const ConvRun run = call.runs[i];
      const float *x = call.x + n * call.x_stride + run.from, *weight = call.weight + run.to;
      float* out = y + n * call.width + run.to;
      ForColumns(run.count, [&](size_t c, auto part) CAIRN_LAMBDA {
        const F16 s = Sum<kTaps>(x + c, call.x_stride, weight + c, call.width, call.before[n], part);
        Store(s / (Set(1.0f) + Exp(Neg(s))), out + c, part);
      });
    }
  }
}

// One piece of rows: dy becomes the gradient of the sum; the weight's gradient of the piece.
template <int64_t kTaps>
void BackwardPiece(const ConvCall& call, int64_t begin, int64_t end, float* dy, float* partial) {
  std::fill_n(partial, kTaps * call.width, 0.0f);
  constexpr int64_t kBlock = 32;  // rows that stay in the cache while the columns pass
  for (int64_t block = begin; block < end; block += kBlock) {
    for (int64_t i = 0; i < call.run_count; ++i) {
      const ConvRun run = call.runs[i];
      ForColumns(run.count, [&](size_t c, auto part) CAIRN_LAMBDA {
        const int64_t column = run.to + static_cast<int64_t>(c);
        F16 sums[kTaps];
        for (int64_t j = 0; j < kTaps; ++j) sums[j] = Load(partial + j * call.width + column, part);
        for (int64_t n = block; n < std::min(block + kBlock, end); ++n) {
          const float* x = call.x + n * call.x_stride + run.from + c;
          const int64_t before = call.before[n];
          const F16 s = Sum<kTaps>(x, call.x_stride, call.weight + column, call.width, before, part);
          const F16 e = Exp(Neg(s)), sigmoid = Set(1.0f) / (Set(1.0f) + e);
          const F16 slope = MulAdd(s * sigmoid, e * sigmoid, sigmoid);
          const F16 d = Load(dy + n * call.width + column, part) * slope;
          Store(d, dy + n * call.width + column, part);
          for (int64_t j = 0; j < kTaps; ++j)
            if (j <= before) sums[kTaps - 1 - j] = MulAdd(d, Load(x - j * call.x_stride, part), sums[kTaps - 1 - j]);
        }
        for (int64_t j = 0; j < kTaps; ++j) Store(sums[j], partial + j * call.width + column, part);
      });
    }
  }
}

template <int64_t kTaps>
void BackwardRows(const ConvCall& call, float* dy, float* dx, int64_t dx_stride, float* dweight, float* partial) {
  const size_t rows = static_cast<size_t>(call.rows), pieces = piece_count(rows), size = kTaps * call.width;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (size_t piece = 0; piece < pieces; ++piece)
      BackwardPiece<kTaps>(call, piece_begin(piece, pieces, rows), piece_begin(piece + 1, pieces, rows), dy,
                           partial + piece * size);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < call.rows; ++n) {
      for (int64_t i = 0; i < call.run_count; ++i) {
        const ConvRun run = call.runs[i];
        const float *d = dy + n * call.width + run.to, *weight = call.weight + run.to;
        float* out = dx + n * dx_stride + run.from;
        ForColumns(run.count, [&](size_t c, auto part) CAIRN_LAMBDA {
          F16 sum = Zero();
          for (int64_t j = 0; j < kTaps; ++j)
            if (j <= call.after[n])
              sum = MulAdd(Load(weight + (kTaps - 1 - j) * call.width + c, part), Load(d + j * call.width + c, part),
                           sum);
          Store(sum, out + c, part);
        });
      }
    }
  }
  if (dweight) simd_add_rows(partial, pieces, size, dweight);
}

void Forward(const ConvCall& call, float* y) {
  constexpr void (*kTable[])(const ConvCall&, float*) = {ForwardRows<1>, ForwardRows<2>, ForwardRows<3>,
                                                         ForwardRows<4>, ForwardRows<5>, ForwardRows<6>,
                                                         ForwardRows<7>, ForwardRows<8>};
  kTable[call.taps - 1](call, y);
}
void Backward(const ConvCall& call, float* dy, float* dx, int64_t dx_stride, float* dweight, float* partial) {
  constexpr void (*kTable[])(const ConvCall&, float*, float*, int64_t, float*, float*) = {
      BackwardRows<1>, BackwardRows<2>, BackwardRows<3>, BackwardRows<4>,
      BackwardRows<5>, BackwardRows<6>, BackwardRows<7>, BackwardRows<8>};
  kTable[call.taps - 1](call, dy, dx, dx_stride, dweight, partial);
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {
HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

void simd_conv_forward(const ConvCall& call, float* y) { HWY_DYNAMIC_DISPATCH(Forward)(call, y); }
void simd_conv_backward(const ConvCall& call, float* dy, float* dx, int64_t dx_stride, float* dweight, float* partial) {
  HWY_DYNAMIC_DISPATCH(Backward)(call, dy, dx, dx_stride, dweight, partial);
}
}  // namespace cairn::kernels
#endif
