// Losses of pairs (chosen, rejected): value and gradient by the log-probability of each completion, in closed form.
#pragma once

#include <ATen/ATen.h>

#include "trainer/metrics/tally.h"
#include "trainer/objectives/preference/options.h"

namespace cairn::preference {

// P pairs of a micro-batch. Log-probabilities are SUMS over the tokens of a completion, float32 [P], nats; lengths are
// those tokens, int64 [P]. A loss that averages over tokens divides by them (by 1 where there is none).
struct PairBatch {
  at::Tensor chosen_logps, rejected_logps;
  at::Tensor ref_chosen_logps, ref_rejected_logps;  // where Needs::reference, else may be undefined
  at::Tensor chosen_lengths, rejected_lengths;
  double likelihood = 0;  // where Needs::likelihood: sum of the log-probabilities of the chosen completions' tokens,
                          // with those of their prompts where Needs::prompt
};

// Of the whole step, over all ranks.
struct PairCounts {
  int64_t pairs = 0;
  int64_t likelihood_tokens = 0;  // how many log-probabilities PairBatch::likelihood adds up
};

struct PairOutput {
  double loss = 0;                // this micro-batch's share: the mean is over the pairs of the step
  at::Tensor dchosen, drejected;  // float32 [P], by the SUMMED log-probability: that of every token of the completion
  double dlikelihood = 0;         // to be added at every token that PairBatch::likelihood adds up
  Tally metrics;                  // by TRL's names
};

// Throws std::invalid_argument where tensors do not fit or one is missing. The options have passed check().
PairOutput pair_loss(const PairBatch& batch, const PairCounts& step, const Options& options);

}  // namespace cairn::preference
