// GRPO's advantages (Shao 2024, section 4.1): (reward - mean of the group) / (std + 1e-4), Bessel-corrected; the std is
// that of the group or of the batch, or there is none (Dr. GRPO). normalize_then_sum is GDPO (2026): every reward
// function is normalized within the group, the weighted sum over the batch.
#include <cmath>

#include "trainer/rl/estimators.h"

namespace cairn::rl {
namespace {

constexpr double kEpsilon = 1e-4;

bool is_zero(double std) { return std <= 1e-8; }

Estimate sum_then_normalize(const EstimatorInput& input) {
  const std::vector<double> rewards = input.after_kl();
  const int64_t G = input.options.num_generations;
  const std::string& scale = input.options.scale_rewards;
  const double batch_std = moments(rewards).std;
  Estimate out;
  double zeros = 0;
  for (int64_t b = 0; b < input.B; ++b) {
    const Moments group = moments(std::span(rewards).subspan(b / G * G, G));
    const double std = scale == "batch" ? batch_std : group.std;
    zeros += is_zero(std);
    out.advantages.push_back((rewards[b] - group.mean) / (scale == "none" ? 1 : std + kEpsilon));
  }
  out.zero_std = zeros / static_cast<double>(input.B);
  return out;
}

Estimate normalize_then_sum(const EstimatorInput& input) {
  const int64_t G = input.options.num_generations;
  const float* reward = input.batch.rewards.const_data_ptr<float>();
  std::vector<double> sums(input.B, kNaN);
  for (int64_t f = 0; f < input.F; ++f) {
    for (int64_t first = 0; first < input.B; first += G) {
      std::vector<double> group;
      for (int64_t b = first; b < first + G; ++b) group.push_back(reward[b * input.F + f]);
      const Moments m = moments(group);
      for (int64_t b = first; b < first + G; ++b) {
        const double r = group[b - first];
        if (std::isnan(r)) continue;
        const double normal = (r - m.mean) / (m.std + kEpsilon);
        // The only number of its group has no deviation: it says nothing, and still its completion is scored.
        sums[b] = (std::isnan(sums[b]) ? 0 : sums[b]) + (std::isnan(normal) ? 0 : input.weights[f] * normal);
      }
    }
  }
  const Moments batch = moments(sums);
  Estimate out;
  for (const double sum : sums) out.advantages.push_back((sum - batch.mean) / (batch.std + kEpsilon));
  out.zero_std = is_zero(batch.std);
  return out;
}

}  // namespace

Estimate grpo_advantages(const EstimatorInput& input) {
  return input.options.multi_objective_aggregation == "normalize_then_sum" ? normalize_then_sum(input)
                                                                           : sum_then_normalize(input);
}

}  // namespace cairn::rl
