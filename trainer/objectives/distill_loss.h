// Distillation: the divergence of a student's next-token distribution from a teacher's, row by row of a tile of logits,
// with its gradient in closed form (Agarwal 2023, "On-policy distillation of language models", eq. 1).
//
// With S = softmax(student / temperature), T likewise of the teacher, M = beta T + (1 - beta) S:
//   beta 0: KL(T || S), forward;  beta 1: KL(S || T), reverse;  else beta KL(T || M) + (1 - beta) KL(S || M), the
//   generalized Jensen-Shannon divergence, which is small where beta is near either end.
// N: rows of the tile, V: vocabulary, K: tokens that the teacher's file names in a row.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace cairn {

struct DistillOptions {
  double beta = 1.0;          // TRL's DistillationConfig
  double temperature = 1.0;   // of both; the loss is not multiplied by its square
  bool loss_add_tail = true;  // a teacher of K tokens. true: all other tokens together are one event more, false: both
                              // distributions are taken over the K tokens alone and normalized there
};
// Throws std::invalid_argument naming the key, the value and the reason.
void check(const DistillOptions& options);

struct DistillOutput {
  double loss = 0;     // scale * sum of the rows' divergences, nats
  double entropy = 0;  // sum of the student's entropies over the rows that count, nats
  int64_t rows = 0;    // that count
};

// student, teacher: float32 [N, V], the last dimension contiguous. mask: bool [N], rows that count, or undefined: all.
// dlogits: float32 [N, V], written: d loss / d student, 0 in rows that do not count; it may be `student` itself;
// undefined: no gradient. row_loss: float32 [N] or undefined, written: the divergence of each row, not scaled. `scale`
// is what the sum is multiplied by: 1 / (tokens of the step, over all ranks). Rows are computed one by one in float64,
// so a row's numbers hang on no other row and on no number of threads. Throws std::invalid_argument where tensors do
// not fit.
DistillOutput distill_loss(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& mask, double scale,
                           const DistillOptions& options, const at::Tensor& dlogits, const at::Tensor& row_loss = {});

// A teacher of which a file has K tokens a row: ids int32 [N, K], -1 where a row has fewer, and their log-probabilities
// float32 [N, K] over the whole vocabulary, at temperature 1: another temperature is refused, since what is not in the
// file cannot be had at it. Throws std::invalid_argument also where an id is out of range or twice in a row, or where
// the probabilities of a row add up to more than 1.
DistillOutput distill_loss_topk(const at::Tensor& student, const at::Tensor& ids, const at::Tensor& logprobs,
                                const at::Tensor& mask, double scale, const DistillOptions& options,
                                const at::Tensor& dlogits, const at::Tensor& row_loss = {});

}  // namespace cairn
