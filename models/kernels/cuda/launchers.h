// What the .cu files offer: raw device pointers and a stream in, one or two kernel launches each, no LibTorch (which
// would cost half a minute a file). Formulas and shapes are those of models/kernels/<op>.h; the arithmetic is float32
// whatever the tensors hold.
//
// Never run on a GPU so far: compiled for sm_80, sm_90a and sm_100a; tests/models/cuda_*_test.cpp are what a first run
// has to pass.
//
// Every sum has a fixed order that follows from the sizes alone, and there are no atomics: the same numbers give the
// same bits on the same GPU. Launchers return at once; they throw std::runtime_error naming the kernel where the launch
// was refused (or where an earlier kernel of the process failed: CUDA reports it at the next call).
#pragma once

#include <algorithm>
#include <cstdint>

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace cairn::kernels::cuda {

using Stream = CUstream_st*;

enum class Type { float32, bfloat16 };

// Row r begins at data + (r / inner) * outer_stride + (r % inner) * inner_stride, in elements.
struct Rows {
  void* data = nullptr;
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;
};

// ---- norm.cu ----
struct RmsNormForward {
  Type type, weight_type;  // of x, residual, sum and y; of weight
  int64_t rows = 0, columns = 0;
  Rows x;
  const void* residual = nullptr;  // [rows, columns] or null
  const void* weight = nullptr;    // [columns]
  float eps = 0, offset = 0;
  void* sum = nullptr;  // [rows, columns] where residual is given; rounded to the type before the norm sees it
  void* y = nullptr;    // [rows, columns]
  float* rstd = nullptr;
};
void rms_norm_forward(const RmsNormForward& job, Stream stream);

// Sums over rows are taken in so many pieces, then joined in order.
constexpr int64_t weight_pieces(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, 256); }

struct RmsNormBackward {
  Type type, weight_type;  // of dy, sum, dsum and out; of weight
  int64_t rows = 0, columns = 0;
  Rows dy, sum;
  const void* dsum = nullptr;  // [rows, columns] or null
  const void* weight = nullptr;
  const float* rstd = nullptr;
  float offset = 0;
  Rows out;                  // may be dy itself
  float* dweight = nullptr;  // added to; or null
  float* partial = nullptr;  // workspace, [weight_pieces(rows), columns], where dweight is given
};
void rms_norm_backward(const RmsNormBackward& job, Stream stream);

// ---- activation.cu; `kind` numbers enum Activation of models/kernels/activation.h ----
struct Gated {
  Type type;
  int64_t rows = 0, columns = 0;  // columns = F
  const void* gate_up = nullptr;  // gate in columns [0, F), up in [F, 2F)
  int64_t gate_up_stride = 0;
  const void* dh = nullptr;  // [rows, F]; null: the forward pass
  void* out = nullptr;       // [rows, F], or the gradient of gate_up (maybe in its place)
  int64_t out_stride = 0;
};
void gated(const Gated& job, int kind, Stream stream);
// y = act(x), or dy * act'(x) where dy is given; y may be x or dy.
void activation(Type type, const void* x, const void* dy, void* y, int64_t n, int kind, Stream stream);

// ---- rope.cu ----
struct Rope {
  Type type;
  int64_t rows = 0, heads = 0, half = 0;  // half = R / 2
  void* x = nullptr;
  int64_t row_stride = 0, head_stride = 0;
  const int32_t* positions = nullptr;  // [rows]; a row outside the table is left alone (the caller checks)
  int64_t table_rows = 0;
  const float *cos = nullptr, *sin = nullptr;  // [table_rows, half]
  bool interleaved = false, inverse = false;
};
void rope(const Rope& job, Stream stream);

// ---- flat.cu: passes of the optimizer, to the bit those of the CPU ----
struct AdamwRun {
  void* p = nullptr;  // of `type`; all others float32
  float *g = nullptr, *m = nullptr, *v = nullptr;
  int64_t n = 0;
  float decay = 1.0f;  // p is multiplied by it first
  Type type = Type::float32;
};
struct AdamwScalars {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2, inv_sqrt_correction2, eps, step_size;
  bool clear_grad;
};
void adamw(const AdamwRun& run, const AdamwScalars& scalars, Stream stream);

// out[k] = the sum of squares of x[k * piece, (k + 1) * piece) in double: lane i of 16 takes elements i mod 16, the
// lanes are joined by a fixed tree. out: device memory, ceil(n / piece) doubles.
void squared_norm_pieces(const float* x, int64_t n, int64_t piece, double* out, Stream stream);

}  // namespace cairn::kernels::cuda
