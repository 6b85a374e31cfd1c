// How answers are judged: a reward gives each completion of a batch a number, or no verdict.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/rl_options.h"
#include "trainer/rl/tasks/task.h"

namespace cairn::rl {

// One completion and what it answers. Views: REQUIRES that what they point to lives as long as the call.
struct Sample {
  const Problem* problem = nullptr;
  std::string_view completion;    // text, without the end of sequence token
  std::span<const int32_t> ids;   // the sampled tokens
  bool truncated = false;         // stopped at the largest length
  bool opened_by_prompt = false;  // the prompt ended with <think>
};

struct Verdict {
  double reward = std::numeric_limits<double>::quiet_NaN();  // NaN: no verdict, the completion is not counted
  Json extra;                                                // recorded beside it; null: nothing
};

class Reward {
 public:
  explicit Reward(std::string label) : label_(std::move(label)) {}
  virtual ~Reward() = default;
  const std::string& label() const { return label_; }
  // One verdict a sample, in order; a function of the samples alone (a program is asked to be one). Throws
  // std::runtime_error, naming the reward, where it cannot judge at all.
  virtual std::vector<Verdict> judge(std::span<const Sample> samples) = 0;
  // The answer that the completion gives, in a form where equal answers are equal texts, for a vote of the majority;
  // none: it gives no answer, or this reward knows none.
  virtual std::optional<std::string> answer(const Sample&) const { return std::nullopt; }

 private:
  std::string label_;
};

// What rewards take from the run.
struct RewardContext {
  int64_t max_completion_length = 0;  // 0: not known
};

// By options.name, from the table in rewards.cpp. Throws std::invalid_argument for options that do not fit.
std::unique_ptr<Reward> make_reward(const config::RewardOptions& options, const RewardContext& context);

// A reward of one number a sample.
class PlainReward : public Reward {
 public:
  using Reward::Reward;
  std::vector<Verdict> judge(std::span<const Sample> samples) final {
    std::vector<Verdict> out;
    out.reserve(samples.size());
    for (const auto& sample : samples) out.push_back(verdict(sample));
    return out;
  }

 protected:
  virtual Verdict verdict(const Sample& sample) const = 0;
};

// The part of a completion that holds the answer: behind the reasoning where `after_think` says so.
inline std::string_view answer_part(const Sample& sample, bool after_think) {
  return after_think ? split_reasoning(sample.completion, {}, sample.opened_by_prompt).answer : sample.completion;
}

}  // namespace cairn::rl
