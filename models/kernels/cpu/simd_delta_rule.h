// The gated delta rule over raw pointers; formulas in simd_delta_rule_inl.h, shapes as in models/kernels/delta_rule.h.
#pragma once

#include <cstdint>

namespace cairn::kernels {

constexpr int64_t kDeltaChunk = 64;  // part of the numbers: changing it changes bits

// Rows of one document that are taken together; chunks are counted from the document's start.
struct DeltaChunk {
  int64_t row = 0;     // first row, of all N
  int64_t rows = 0;    // 1 to 64
  bool first = false;  // of its document: no state enters
  bool last = false;   // of its document: its state is used no more
  int64_t state = -1;  // number of the kept state that enters; -1 where none does
};

struct DeltaCall {
  int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  int64_t key_padded = 0, value_padded = 0;  // rounded up to 16
  float scale = 1;                           // of q
  float eps = 0;                             // above zero: q and k are divided by sqrt(|x|^2 + eps)
  // Rows at a stride, at row 0 and head 0.
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  const float *g = nullptr, *beta = nullptr;  // [N, Hv]
  float* out = nullptr;                       // [N, Hv * Dv]
  float* kept = nullptr;                      // [N, Hv * Dv] corrections, or null where there will be no backward pass
  float* states = nullptr;                    // [kept states, Hv, key_padded, value_padded], likewise
  float* state = nullptr;  // [Hv, Dk, Dv] that enters the first row and leaves the last (one sequence), or null
};

struct DeltaGradients {
  const float* dout = nullptr;  // [N, Hv * Dv]
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
  float *dg = nullptr, *dbeta = nullptr;  // [N, Hv]
};

// Everything of one key head and its value heads in one sequence: `count` chunks, in order.
void simd_delta_forward(const DeltaCall& call, const DeltaChunk* chunks, int64_t count, int64_t key_head);
void simd_delta_backward(const DeltaCall& call, const DeltaGradients& gradients, const DeltaChunk* chunks,
                         int64_t count, int64_t key_head);
// Token by token: rows [0, rows) of one value head, from call.state, which is brought up to date.
void simd_delta_decode(const DeltaCall& call, int64_t rows, int64_t value_head);

}  // namespace cairn::kernels
