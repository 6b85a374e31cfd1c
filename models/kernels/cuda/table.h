// The kernels of the CUDA module as the rest of the program sees them. The program does not link CUDA: it opens the
// module where a GPU is used, and calls it through this table. Signatures and meaning are those of
// models/kernels/<op>.h, on CUDA tensors of float32 or bfloat16, on the current stream of the tensors' device.
//
// Never run on a GPU so far.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "models/kernels/activation.h"
#include "models/kernels/causal_conv.h"
#include "models/kernels/cuda/launchers.h"
#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/delta_gates.h"
#include "models/kernels/delta_rule.h"
#include "models/kernels/gated_norm.h"
#include "models/kernels/grouped_linear.h"
#include "models/kernels/index_loss.h"
#include "models/kernels/norm.h"
#include "models/kernels/router.h"
#include "models/kernels/sparse_attention.h"

namespace cairn::kernels::cuda {

struct Table {
  int64_t size;       // of this struct: a module of another build is refused
  const char* torch;  // the version of LibTorch that the module was built with
  int cuda;           // the toolkit's version, 13000 for 13.0

  // As in norm.h; residual, sum, y, dsum and out have x's type, weight either type, rstd and dweight float32. With
  // bfloat16 the sum is rounded before the norm sees it.
  NormOutput (*rms_norm_forward)(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps,
                                 double offset);
  at::Tensor (*rms_norm_backward)(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                                  const at::Tensor& weight, const at::Tensor& rstd, double offset,
                                  const at::Tensor& dweight, const at::Tensor& out);
  at::Tensor (*gated_forward)(const at::Tensor& gate_up, Activation kind);
  at::Tensor (*gated_backward)(const at::Tensor& dh, const at::Tensor& gate_up, Activation kind, const at::Tensor& out);
  at::Tensor (*activation_forward)(const at::Tensor& x, Activation kind);
  at::Tensor (*activation_backward)(const at::Tensor& dy, const at::Tensor& x, Activation kind);
  // cos and sin float32. Positions are read back and checked where they are not those of the call before (the layers of
  // a pass share them): one wait for the GPU a micro-batch.
  void (*rope_)(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin,
                bool interleaved, bool inverse);
  // On the current device. Bits equal those of the CPU (optim/kernels/passes.h).
  void (*adamw)(const AdamwRun& run, const AdamwScalars& scalars);
  // flat: contiguous float32; out: host memory, one double for each `piece` elements begun. Waits for the GPU. Bits
  // equal those of optim/norm.h on the CPU.
  void (*squared_norm_pieces)(const at::Tensor& flat, int64_t piece, double* out);

  // Of sparse_attention.h, with q, k, v and their gradients of one type, lse float32, heads of at most kWidestRow
  // features. Lists come from index_topk: their numbers are not looked at, since that would wait for the GPU.
  AttentionOutput (*sparse_attention_forward)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                              const at::Tensor& selected, const AttentionOptions& options);
  void (*sparse_attention_backward)(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                                    const at::Tensor& selected, const AttentionOptions& options, const at::Tensor& dq,
                                    const at::Tensor& dk, const at::Tensor& dv);
  at::Tensor (*sparse_attention_decode)(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                        const at::Tensor& selected, int64_t length, const AttentionOptions& options);
  // float32 [batch, H, length] of causal attention over all keys (attention.h: batch, scale and segments count).
  at::Tensor (*attention_lse)(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);
  // Of index_topk.h. With float32 the CPU's lists.
  at::Tensor (*index_topk)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options);
  at::Tensor (*index_topk_decode)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                                  const IndexOptions& options);
  // Of index_loss.h; waits for the GPU. Rows of at most kWidestRow features.
  IndexLoss (*index_loss)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                          const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient);
  // Routers and experts. The router is float32 and leaves the entropy undefined; its options are checked by the caller.
  // Rows are sorted on the GPU, `ExpertRows::on_device` alone is filled and nobody waits; pairs with experts that do
  // not exist are dropped. x, dy and gate_up [N k, 2F] have one type, weights and biases either; a weight that is wider
  // than x is rounded to its type. Gradients of weights are float32.
  Routing (*route)(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options);
  at::Tensor (*route_backward)(const at::Tensor& dweights, const at::Tensor& logits, const Routing& routing,
                               const RouterOptions& options, const RouterAux& aux);
  ExpertRows (*sort_by_expert)(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences);
  ExpertsOutput (*experts_forward)(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows,
                                   const ExpertWeights& w, const ExpertGate& gate, bool keep);
  ExpertsGradient (*experts_backward)(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weights,
                                      const ExpertRows& rows, const ExpertWeights& w, const ExpertGate& gate,
                                      const at::Tensor& gate_up, const ExpertWeights& gradients);

  // Gated DeltaNet. Activations have one type, small weights either, g, beta and gradients of weights are float32. Key
  // heads have at most 256 columns. Segments are read back where they are not those of the call before: one wait for
  // the GPU a micro-batch.
  DeltaRuleOutput (*delta_rule_forward)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& g, const at::Tensor& beta, const DeltaRuleOptions& options,
                                        bool keep);
  void (*delta_rule_backward)(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& g, const at::Tensor& beta, const DeltaRuleOutput& forward,
                              const DeltaRuleOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                              const at::Tensor& dv, const at::Tensor& dg, const at::Tensor& dbeta);
  at::Tensor (*delta_rule_decode)(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                                  const at::Tensor& beta, const at::Tensor& state, const DeltaRuleOptions& options);
  at::Tensor (*causal_conv_forward)(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options);
  void (*causal_conv_backward)(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                               const ConvOptions& options, const at::Tensor& dx, const at::Tensor& dweight);
  at::Tensor (*causal_conv_decode)(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& history,
                                   const ConvOptions& options);
  DeltaGatesOutput (*delta_gates_forward)(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                          int64_t key_heads);
  void (*delta_gates_backward)(const at::Tensor& dg, const at::Tensor& dbeta, const DeltaGatesOutput& forward,
                               const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                               int64_t key_heads, const at::Tensor& dba, const at::Tensor& dA_log,
                               const at::Tensor& ddt_bias);
  GatedNormOutput (*gated_norm_forward)(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps);
  at::Tensor (*gated_norm_backward)(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z,
                                    const at::Tensor& weight, const at::Tensor& rstd, const at::Tensor& dz,
                                    const at::Tensor& dweight);
  at::Tensor (*sigmoid_gate_forward)(const at::Tensor& x, const at::Tensor& z);
  at::Tensor (*sigmoid_gate_backward)(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z,
                                      const at::Tensor& dz);

  // "NVIDIA H200, sm 90": what of a GPU decides bits.
  std::string (*gpu_name)(int index);
};

// Opens libtorch_cuda.so and libcairn_cuda.so, which lies beside the program. False where that cannot be: *why_not (may
// be null) then says what is missing and what to do. Later calls return what the first one found.
// NOTE: call it before the first backward pass and before anything asks ATen about CUDA: both look for GPUs once only.
bool open_module(std::string* why_not);

// Null until open_module() has succeeded.
const Table* table();

// A function that the module exports by this name, or null.
void* module_symbol(const char* name);

// True where the kernels of the table take x.
inline bool available(const at::Tensor& x) {
  return x.is_cuda() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && table() != nullptr;
}

// The same of kernels that hold a row of features in a warp's registers.
inline bool takes_rows(const at::Tensor& x) { return available(x) && x.size(-1) <= kWidestRow; }

}  // namespace cairn::kernels::cuda
