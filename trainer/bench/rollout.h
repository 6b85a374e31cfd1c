// `cairn bench rl --rollout`: tokens drawn for many sequences at once, and a group of completions of one prompt.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::bench {

struct RolloutBenchOptions {
  std::vector<std::string> sizes = {"4m", "14m", "135m"};
  int64_t batch = 32;          // sequences decoded together, each from a prompt of its own of 16 tokens
  int64_t tokens = 64;         // of each completion
  int64_t group = 8;           // completions of one prompt
  int64_t group_prompt = 512;  // its tokens
  int rounds = 3;
};

// For each size {"tokens_per_s", "bound_tokens_per_s", "share_of_bound", "group_s", "one_after_another_s", "speedup"},
// medians of the rounds. Llamas of random weights, float32, temperature 1, everything counted (prompts, drawing, text).
// The bound is the measured peak of square products over 2 * parameters; it is measured in turns with the rest.
// one_after_another_s: Generator::run for each completion of the group.
nlohmann::ordered_json bench_rollout(const RolloutBenchOptions& options);

}  // namespace cairn::bench
