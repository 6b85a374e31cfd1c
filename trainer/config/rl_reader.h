// Reading and checking `task:` and `rewards:`. Both can also be sections of a struct that is read as a whole
// (v.section("task", ...), v.list("rewards", ...)); then check_task and check_rewards do what takes several keys.
#pragma once

#include <functional>

#include "trainer/config/rl_options.h"
#include "trainer/config/tree.h"

namespace cairn::config {

// Where a key that is given from the section on ("levels", "0.pattern") was written; the section where it was not.
using Locate = std::function<Location(const std::string& key)>;

// The section `task:`, `tree` being what it holds. Relative paths become absolute: beside the file that names them,
// or in the current folder. Throws ConfigError "FILE:LINE: task.KEY: found ..., expected ...".
TaskOptions read_task(const Tree& tree, const std::string& path = "task");
// The list `rewards:`; one reward may stand for itself.
std::vector<RewardOptions> read_rewards(const Tree& tree, const std::string& path = "rewards");

// What takes several keys: something that the task needs and does not have; a key that differs from its default and
// that this task, or this reward, does not read; labels that occur twice. Sets labels that are not given, and paths.
void check_task(TaskOptions& options, const std::string& path, const Locate& locate);
void check_rewards(std::vector<RewardOptions>& options, const std::string& path, const Locate& locate);

Json to_json(const TaskOptions& options);
Json to_json(const std::vector<RewardOptions>& options);

}  // namespace cairn::config
