// A program as a reward: any language, one line of JSON a question.
//   question {"id": 17, "problem": "gsm8k.jsonl-...", "prompt": "...", "completion": "...", "reference": "18",
//             "tokens": 120, "truncated": false, "level": 0, "fields": {...}[, "messages": [{"role", "content"}, ...]]}
//   answer   {"id": 17, "reward": 0.5[, "extra": anything]}      "reward": null is no verdict
#pragma once

#include <memory>
#include <vector>

#include "trainer/rl/rewards/channel.h"
#include "trainer/rl/rewards/reward.h"

namespace cairn::rl {

// The part of a question that says what was asked and what the answer should be; rewards and environments add to it.
Json problem_message(const Problem& problem);

// What is wrong with `reward` in an answer: it has to be a finite number or null. "": nothing.
std::string check_reward(const Json& answer);

class ProgramReward : public Reward {
 public:
  explicit ProgramReward(const config::RewardOptions& options);
  // With several workers a batch is cut into as many stretches of samples that follow one another, asked at once.
  // Throws ProgramError.
  std::vector<Verdict> judge(std::span<const Sample> samples) override;

 private:
  std::vector<std::unique_ptr<Channel>> workers_;
};

// From a reward's settings: the line or the words, folder, timeout, restarts.
ChannelOptions channel_options(const config::RewardOptions& options, const std::string& what);

// Asks the channels at once, each its stretch of the questions, and joins the answers in order.
std::vector<Json> ask_all(std::span<const std::unique_ptr<Channel>> channels, std::vector<Json> questions,
                          const std::vector<std::string>& names, const Channel::Check& check);

}  // namespace cairn::rl
