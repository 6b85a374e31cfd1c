// Which experts a token goes to and with what weights, from the router's logits.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct RouterOptions {
  // softmax: scores are probabilities over all experts. sigmoid: each expert by itself. softmax_topk: the logits
  // choose, and the weights are a softmax over the chosen.
  enum class Scoring { softmax, sigmoid, softmax_topk } scoring = Scoring::softmax;
  int64_t topk = 1;
  bool normalise = false;  // weights of the chosen / their sum (+ 1e-20 for sigmoid, as DeepSeek-V3)
  double scale = 1;        // of the weights
  int64_t groups = 1;      // only experts of the best `topk_groups` groups are chosen; a group counts by the sum of its
  int64_t topk_groups = 1;  // two best
};

struct Routing {
  at::Tensor experts;  // int32 [N, k], best first; of equal scores (and groups) the lower number first
  at::Tensor weights;  // float32 [N, k]
  at::Tensor scores;   // float32 [N, E]: probabilities, or sigmoids
  at::Tensor lse;      // float32 [N]: log of the sum of exp of the logits
  at::Tensor entropy;  // float32 [N] of the normalised scores, nats; the twin leaves it undefined
};

// What auxiliary losses add in the backward pass.
struct RouterAux {
  // float32 [S, E] or undefined: gradient of the normalised scores (scores / their sum over the experts; softmax: the
  // scores themselves) of rows [s N / S, (s + 1) N / S).
  at::Tensor balance;
  double z = 0;  // times the gradient of lse^2
};

// logits float32 [N, E]; bias float32 [E] or undefined, added to the scores (softmax_topk: the logits) for the choice
// alone. A row's bits depend on nothing but the row.
Routing route(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options);

// dweights float32 [N, k] -> gradient of the logits [N, E].
at::Tensor route_backward(const at::Tensor& dweights, const at::Tensor& logits, const Routing& routing,
                          const RouterOptions& options, const RouterAux& aux);

}  // namespace cairn::kernels
