// Objective grpo and its family: completions are sampled from the state that the step begins with, judged, and learned
// from in one update, all by the number of the step: a step that is made again samples the same completions.
#pragma once

#include "trainer/metrics/tally.h"
#include "trainer/objectives/objective.h"
#include "trainer/rl/advantages.h"
#include "trainer/rl/policy_loss.h"
#include "trainer/rl/rewards/reward_set.h"
#include "trainer/rollout/engine.h"

namespace cairn {

class PolicyObjective : public Objective {
 public:
  PolicyObjective(const config::RunConfig& config, TokenizerPtr tokenizer, const models::DecoderConfig& decoder);

  StepData step(State& state, int64_t n, const StepSettings& settings) override;
  nlohmann::ordered_json metrics() const override;
  std::vector<nlohmann::ordered_json> samples() const override;
  // {"task": {"accuracy", "standard_error", "reward", "problems", "mean_length"}}: greedy answers to held-out problems.
  nlohmann::ordered_json evaluate(State& state, const StepSettings& settings, int64_t count) override;

 private:
  // Problems with their prompts, the completions of each one after another, and what was thought of them.
  struct Sampled {
    std::vector<rl::Problem> problems;
    std::vector<std::vector<int32_t>> prompts;  // [problems]
    std::vector<rollout::Sample> samples;       // [problems * each]
    rl::Judgement judgement;
    int64_t each = 1;
    const std::vector<int32_t>& prompt_of(size_t sample) const { return prompts[sample / each]; }
  };
  Sampled sample(State& state, const StepSettings& settings, rl::Side side, int64_t first, int64_t problems,
                 int64_t each, double temperature, int64_t step);
  std::vector<int32_t> encode(const rl::Problem& problem) const;
  data::Batch rows(int64_t first, int64_t count) const;
  models::Loss loss(models::Decoder& model, const ModelInput& input, int64_t first, int64_t count);
  void measure_lengths();

  const config::RunConfig config_;
  TokenizerPtr tokenizer_;
  std::unique_ptr<rl::Task> task_;
  std::unique_ptr<rl::RewardSet> rewards_;
  std::vector<int32_t> end_ids_;
  std::unique_ptr<rollout::Engine> engine_;

  // The step at hand. C: tokens of its longest completion; T: of its longest row.
  Sampled at_hand_;
  int64_t length_ = 0;                              // T
  int64_t targets_ = 1;                             // tokens of all completions
  at::Tensor mask_, truncated_, rollout_logprobs_;  // [B, C], [B], [B, C]
  rl::Advantages advantages_;
  rl::PolicyCounts counts_;
  Tally tally_;
};

}  // namespace cairn
