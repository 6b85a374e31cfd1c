// Cross-entropy straight from the hidden states, in chunks of rows: the logits of the whole batch are never held.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct CrossEntropyOptions {
  double scale = 1.0;       // the loss is scale * sum(nll) + z_loss * scale * sum(log Z ^ 2); gradients are of that
  double softcap = 0.0;     // logits -> softcap * tanh(logits / softcap); 0 = off (Gemma 2)
  double logit_scale = 1.0; // logits are multiplied by this first (Cohere, Granite)
  double z_loss = 0.0;      // coefficient of log^2 Z (PaLM)
  int64_t chunk_rows = 0;   // 0: chosen from V alone (a fixed rule, so that bits do not depend on threads)
};

struct CrossEntropyOutput {
  double nll = 0;         // sum over predicted rows, nats; rows add up in a fixed tree, in double
  double z = 0;           // sum of log^2 Z over predicted rows
  int64_t correct = 0;    // rows whose argmax is the target
  at::Tensor row_nll;     // [N] float32, 0 where not predicted
  at::Tensor dhidden;     // [N, D]; undefined unless gradients were asked for
};

// hidden [N, D] contiguous, weight [V, D], bias [V] or undefined, targets int32 [N] with -1 = not predicted.
// With `gradients`, dhidden is filled and the gradients of weight (and bias) are ADDED to dweight [V, D] (dbias [V]): the forward pass knows
// everything that its backward pass needs, since `scale` is known before it. Undefined dweight/dbias: frozen, skipped.
CrossEntropyOutput linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& targets,
                                        const CrossEntropyOptions& options, bool gradients, const at::Tensor& dweight, const at::Tensor& dbias);

}  // namespace cairn::kernels
