// What the tests of tasks and rewards share: options from YAML, samples, the test data.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/data/fixture.h"
#include "tests/data/tokenizer_fixture.h"
#include "trainer/config/rl_reader.h"
#include "trainer/rl/rewards/reward_set.h"
#include "trainer/rl/tasks/task.h"

namespace cairn::rl {

using data::expect_error;
using data::Folder;
using data::test_data;

inline config::TaskOptions task_options(const std::string& yaml) {
  return config::read_task(config::parse_yaml(yaml, "run.yaml"));
}
inline std::unique_ptr<Task> task_of(const std::string& yaml) { return make_task(task_options(yaml)); }

inline std::vector<config::RewardOptions> reward_options(const std::string& yaml) {
  return config::read_rewards(config::parse_yaml(yaml, "run.yaml"));
}
inline std::unique_ptr<Reward> reward_of(const std::string& yaml, int64_t max_completion_length = 0) {
  return make_reward(reward_options(yaml).at(0), {max_completion_length});
}

inline Problem problem_of(const std::string& reference, Json fields = Json::object()) {
  Problem problem;
  problem.id = "p1";
  problem.prompt = "2 + 2?";
  problem.reference = reference;
  problem.fields = std::move(fields);
  return problem;
}

inline double score(Reward& reward, const Problem& problem, const std::string& completion,
                    const std::vector<int32_t>& ids = {}, bool opened_by_prompt = false) {
  Sample sample;
  sample.problem = &problem;
  sample.completion = completion;
  sample.ids = ids;
  sample.opened_by_prompt = opened_by_prompt;
  return reward.judge(std::span(&sample, 1)).at(0).reward;
}
inline double score(Reward& reward, const std::string& reference, const std::string& completion) {
  return score(reward, problem_of(reference), completion);
}

}  // namespace cairn::rl
