// Losses of single completions, each labelled desirable or not: KTO (Ethayarajh 2024, eq. 7) and the unpaired APO-zero.
#pragma once

#include <ATen/ATen.h>

#include "trainer/metrics/tally.h"
#include "trainer/objectives/preference/options.h"

namespace cairn::preference {

// N completions of a micro-batch; log-probabilities summed over the tokens of a completion, float32 [N].
struct SingleBatch {
  at::Tensor logps, ref_logps;
  at::Tensor desirable;  // bool [N]
};
struct SingleOutput {
  double loss = 0;    // this micro-batch's share: the mean is over the completions of the step
  at::Tensor dlogps;  // float32 [N]
  Tally metrics;      // by TRL's names
};

// `completions`: of the step, over all ranks. `kl`: of kto_kl, over all completions of the step; a constant; not read
// by apo_zero_unpaired. Throws std::invalid_argument where tensors do not fit. The options have passed check().
SingleOutput single_loss(const SingleBatch& batch, int64_t completions, double kl, const Options& options);

// KTO's estimate: max(0, mean of log-probability minus the reference's) over mismatched pairs of prompt and completion.
// logps, ref_logps: float32 [N], of the whole step. Throws std::invalid_argument where they do not fit or N is 0.
double kto_kl(const at::Tensor& logps, const at::Tensor& ref_logps);

}  // namespace cairn::preference
