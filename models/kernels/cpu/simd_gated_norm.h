// Gates of the outputs of heads, one with an RMSNorm, and those of the delta rule, over raw pointers; formulas in
// models/kernels/gated_norm.h and models/kernels/delta_gates.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cairn::kernels {

// Rows of a gate: head h of token n at data + n * token + h / group * block + h % group * columns.
struct GateRows {
  int64_t token = 0, block = 0, group = 1;
};

struct GatedNorm {
  int64_t tokens = 0, heads = 0, columns = 0;
  const float* x = nullptr;       // [tokens, heads, columns]
  const float* z = nullptr;       // at `z_rows`
  const float* weight = nullptr;  // [columns]
  GateRows z_rows, dz_rows;
  float eps = 0;
  float* rstd = nullptr;  // [tokens * heads]: written forward, read backward
  float* y = nullptr;     // forward
  const float* dy = nullptr;
  float *dx = nullptr, *dz = nullptr;            // backward; dx may be dy
  float *dweight = nullptr, *partial = nullptr;  // added to, or null; piece_count(tokens * heads) * columns
};
void simd_gated_norm_forward(const GatedNorm& job);
void simd_gated_norm_backward(const GatedNorm& job);

// x [tokens, heads, columns] times sigmoid(z), z at `z_rows`.
struct SigmoidGate {
  int64_t tokens = 0, heads = 0, columns = 0;
  const float *x = nullptr, *z = nullptr;
  GateRows z_rows, dz_rows;
  float* y = nullptr;         // forward
  const float* dy = nullptr;  // backward
  float *dx = nullptr, *dz = nullptr;
};
void simd_sigmoid_gate_forward(const SigmoidGate& job);
void simd_sigmoid_gate_backward(const SigmoidGate& job);

struct DeltaGates {
  int64_t rows = 0, key_heads = 0, heads = 0;
  const float* ba = nullptr;  // rows of 2 * heads at a stride: for each key head its b, then its a
  int64_t ba_stride = 0, dba_stride = 0;
  const float *A_log = nullptr, *dt_bias = nullptr;  // [heads]
  float *g = nullptr, *beta = nullptr;               // [rows, heads]
  const float *dg = nullptr, *dbeta = nullptr;       // backward
  float* dba = nullptr;                              // written
  float *dA_log = nullptr, *ddt_bias = nullptr;      // added to, or null
  float* partial = nullptr;                          // piece_count(rows) * 2 * heads
};
void simd_delta_gates_forward(const DeltaGates& job);
void simd_delta_gates_backward(const DeltaGates& job);

}  // namespace cairn::kernels
