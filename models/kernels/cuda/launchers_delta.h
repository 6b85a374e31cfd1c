// Gated DeltaNet on a GPU: what the .cu files offer, as launchers.h says.
//
// Never run on a GPU so far; tests/models/cuda_emulated_delta_test.cpp runs the kernels on a CPU.
#pragma once

#include "models/kernels/cuda/launchers.h"

namespace cairn::kernels::cuda {

// ---- delta_forward.cu and delta_backward.cu: the gated delta rule (models/kernels/delta_rule.h), in chunks that are
// counted from the start of each document. What hangs on one chunk alone is done for all chunks at once; the state goes
// through them in order.

constexpr int64_t kDeltaRows = 64;     // of a chunk, at most: part of the numbers
constexpr int64_t kDeltaMaxKey = 256;  // Dk, at most: the state's share of shared memory
constexpr int64_t kDeltaColumns = 32;  // of the state that a block carries through a sequence

// Rows [row, row + rows) of one document. States are numbered; -1: none enters, or nobody wants the one that leaves.
struct DeltaSpan {
  int32_t row, rows, enters, leaves;
};

struct DeltaRule {
  Type type;  // of q, k, v, out and their gradients; all others are float32
  int64_t batch = 1, rows = 0, key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;  // B, N, Hk, Hv, Dk, Dv
  int64_t spans = 0, states_count = 0;
  const DeltaSpan* span = nullptr;      // [spans], in order of row
  const int32_t* first_span = nullptr;  // [B + 1] of each sequence
  float scale = 1, eps = 0;
  const void *q = nullptr, *k = nullptr, *v = nullptr;  // row n at + n * stride, heads one after another
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float *g = nullptr, *beta = nullptr;  // [N, Hv]
  float* corrections = nullptr;               // [N, Hv, Dv], written by the forward pass: v - S^T k
  float* states = nullptr;  // [states_count, Hv, Dk, Dv]: what a sequence's first span enters with is given, the
                            // others are written by the forward pass
  // Workspaces, of either pass.
  float *q_factor = nullptr, *k_factor = nullptr;  // [N, Hk]: what rows of q and k are multiplied with
  float* by_key = nullptr;                         // [N, Hv, Dk]
  float* gate = nullptr;                           // [N, Hv]
  float* total = nullptr;                          // [spans, Hv]: how much of a state is left after a span
};

struct DeltaRuleForward {
  DeltaRule call;
  void* out = nullptr;  // [N, Hv, Dv]
};
void delta_rule_forward(const DeltaRuleForward& job, Stream stream);

struct DeltaRuleBackward {
  DeltaRule call;
  const void* dout = nullptr;                        // [N, Hv, Dv]
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;  // written, strided as their inputs may be
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
  float *dg = nullptr, *dbeta = nullptr;  // [N, Hv], written
  // Workspaces.
  float* dright = nullptr;   // [N, Hv, Dv]: gradient of the right side of the system
  float* dkeys = nullptr;    // [N, Hv, Dk]
  float* dstates = nullptr;  // like states
};
void delta_rule_backward(const DeltaRuleBackward& job, Stream stream);

// ---- causal_conv.cu (models/kernels/causal_conv.h)

constexpr int64_t kConvMaxTaps = 8;

struct CausalConv {
  Type type, weight_type;                             // of x, y and their gradients; of weight
  int64_t rows = 0, length = 1, width = 0, taps = 0;  // N, T, W
  const int32_t* segments = nullptr;                  // [N] or null
  const int32_t* column = nullptr;                    // [W]: the column of x that becomes this one of y
  const void* x = nullptr;  // [N, *], row n at + n * x_stride; rows before the first are history's
  int64_t x_stride = 0;
  const void* history = nullptr;  // forward: `past` rows before the first (one sequence), row stride history_stride
  int64_t history_stride = 0, past = 0;
  const void* weight = nullptr;  // [W, taps]
  void* y = nullptr;             // [N, W]
  // Backward.
  void* dy = nullptr;  // [N, W]; becomes the gradient of what SiLU was given
  void* dx = nullptr;  // [N, *], written at the columns of `column`
  int64_t dx_stride = 0;
  float* dweight = nullptr;  // [W, taps], added to; or null
  float* partial = nullptr;  // workspace, [weight_pieces(rows), W, kConvMaxTaps], where dweight is given
};
void causal_conv_forward(const CausalConv& job, Stream stream);
void causal_conv_backward(const CausalConv& job, Stream stream);

// ---- gated_norm.cu (models/kernels/gated_norm.h and delta_gates.h)

// Head h of token n of a gate at data + n * token + h / group * block + h % group * columns.
struct GateStrides {
  int64_t token = 0, block = 0, group = 1;
};

struct GatedNorm {
  Type type, weight_type;  // of x, z, y and their gradients; of weight
  int64_t tokens = 0, heads = 0, columns = 0;
  const void *x = nullptr, *z = nullptr;  // [tokens, heads, columns]; at z_strides
  GateStrides z_strides, dz_strides;
  const void* weight = nullptr;  // [columns]; null: y = x * sigmoid(z), no norm
  float eps = 0;
  float* rstd = nullptr;  // [tokens * heads]: written forward, read backward; null where there is no norm
  void* y = nullptr;
  const void* dy = nullptr;                      // backward
  void *dx = nullptr, *dz = nullptr;             // written; dx may be dy
  float *dweight = nullptr, *partial = nullptr;  // added to, or null; workspace [weight_pieces(rows), columns]
};
void gated_norm_forward(const GatedNorm& job, Stream stream);
void gated_norm_backward(const GatedNorm& job, Stream stream);

struct DeltaGates {
  Type type, weight_type;  // of ba and dba; of A_log and dt_bias
  int64_t rows = 0, key_heads = 0, heads = 0;
  const void* ba = nullptr;  // [N, 2 Hv]: of each key head its b, then its a
  int64_t ba_stride = 0, dba_stride = 0;
  const void *A_log = nullptr, *dt_bias = nullptr;  // [Hv]
  float *g = nullptr, *beta = nullptr;              // [N, Hv]: written forward, read backward
  const float *dg = nullptr, *dbeta = nullptr;      // backward
  void* dba = nullptr;                              // written
  float *dA_log = nullptr, *ddt_bias = nullptr;     // added to, or null
  float* partial = nullptr;                         // workspace, [weight_pieces(rows), Hv, 2]
};
void delta_gates_forward(const DeltaGates& job, Stream stream);
void delta_gates_backward(const DeltaGates& job, Stream stream);

}  // namespace cairn::kernels::cuda
