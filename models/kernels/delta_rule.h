// The gated delta rule (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"), a linear attention whose state S
// [Dk, Dv] of a head is decayed and corrected by each token:
//   S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  o = S^T q
// In chunks of 64 rows for training (time and memory grow with the length alone), token by token for decoding.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct DeltaRuleOptions {
  int64_t batch = 1;    // N = batch * length rows, sequences one after another
  double scale = 1.0;   // of q
  double eps = 0.0;     // > 0: q and k are divided by sqrt(|x|^2 + eps) first (1e-6 in Qwen3-Next)
  at::Tensor segments;  // int32 [N] or undefined: the state starts at zero where the segment changes
};

// What the backward pass needs of the forward pass: besides the result one row like v for each row, and a state for
// each 64 rows.
struct DeltaRuleOutput {
  at::Tensor out;          // [N, Hv * Dv] contiguous
  at::Tensor corrections;  // v - S^T k by row, before beta; undefined unless it was to be kept
  at::Tensor states;       // that enter chunks, of an inner layout
};

// q, k [N, Hk, Dk], v [N, Hv, Dv], last dimension contiguous, heads one after another, any row stride; Hk divides Hv:
// value head h reads key head h / (Hv / Hk). g (the logarithm of the decay, at most 0), beta float32 [N, Hv]
// contiguous. Chunks are counted from the start of each segment, so a document has the same bits alone and packed with
// others, and they depend neither on the number of threads nor on the other sequences. Throw std::invalid_argument
// where shapes, strides or types do not fit.
DeltaRuleOutput delta_rule_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                                   const at::Tensor& beta, const DeltaRuleOptions& options, bool keep);

// Writes (not adds) dq, dk, dv: preallocated, strided as their inputs may be; dg, dbeta [N, Hv] contiguous.
void delta_rule_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& g, const at::Tensor& beta, const DeltaRuleOutput& forward,
                         const DeltaRuleOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                         const at::Tensor& dv, const at::Tensor& dg, const at::Tensor& dbeta);

// Rows of one sequence that go on from `state` [Hv, Dk, Dv] (contiguous float32; zero at the start), which becomes that
// after the last row: up to 16 rows token by token, more in chunks. Returns [N, Hv * Dv].
at::Tensor delta_rule_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                             const at::Tensor& beta, const at::Tensor& state, const DeltaRuleOptions& options);

}  // namespace cairn::kernels
