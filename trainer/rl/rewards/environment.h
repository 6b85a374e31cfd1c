// A program as an environment: after each turn of the model it goes on or ends the conversation with a reward.
//   question {"id": 17, "problem", "prompt", "reference", "level", "fields"[, "messages"], "turn": 2,
//             "transcript": [{"role": "assistant", "content"}, {"role": "environment", "content"}, ...],
//             "completion": "the last turn of the model", "tokens", "truncated"}
//   answer   {"id": 17, "continue": "text that the model sees next"[, "extra"]}
//         or {"id": 17, "reward": 1.0[, "done": true][, "extra"]}       "reward": null is no verdict
// A question holds all that was said, so an environment can be a function of it; one that keeps a state of its own
// loses it where it is restarted.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/rl/rewards/channel.h"
#include "trainer/rl/rewards/reward.h"

namespace cairn::rl {

struct Turn {
  const Problem* problem = nullptr;
  int turn = 1;                     // of the model, from 1
  std::vector<Message> transcript;  // behind the prompt, the model's last turn included: assistant, environment, ...
  int64_t tokens = 0;               // of the last turn
  bool truncated = false;
};

struct EnvironmentAnswer {
  std::optional<std::string> next;  // the conversation goes on with this text; none: it has ended
  double reward = std::numeric_limits<double>::quiet_NaN();  // NaN: no verdict, or it goes on
  Json extra;
};

class Environment {
 public:
  // Reads program, argv, folder, timeout, restarts and workers of `options`.
  explicit Environment(const config::RewardOptions& options);
  // One answer a turn, in order. Throws ProgramError.
  std::vector<EnvironmentAnswer> step(std::span<const Turn> turns);

 private:
  std::vector<std::unique_ptr<Channel>> workers_;
};

}  // namespace cairn::rl
