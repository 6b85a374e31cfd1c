#include <fmt/format.h>

#include <map>
#include <stdexcept>

#include "trainer/rl/rewards/kinds.h"

namespace cairn::rl {
namespace {
using Maker = std::unique_ptr<Reward> (*)(const config::RewardOptions&, const RewardContext&);

const std::map<std::string, Maker> kRewards = {
    {"number", make_number},
    {"choice", make_choice},
    {"exact_match", make_exact_match},
    {"countdown", make_countdown_reward},
    {"format", make_format},
    {"think_format_reward", make_think_format},
    {"soft_overlong_punishment_reward", make_soft_overlong},
    {"cosine_scaled_reward", make_cosine},
    {"repetition_penalty_reward", make_repetition},
    {"length", make_length},
    {"program", make_program},
};
}  // namespace

std::unique_ptr<Reward> make_reward(const config::RewardOptions& options, const RewardContext& context) {
  const auto maker = kRewards.find(options.name);
  if (maker == kRewards.end()) throw std::invalid_argument(fmt::format("rewards: '{}' is no reward", options.name));
  return maker->second(options, context);
}

}  // namespace cairn::rl
