#include "trainer/rl/tasks/generated.h"

#include <fmt/format.h>

#include <stdexcept>

#include "trainer/config/rl_reader.h"

namespace cairn::rl {
namespace {
constexpr int64_t kAttempts = 100000;  // held_out is at least 0.001
}

void set_prompt(Problem& problem, std::string prompt, const config::TaskOptions& options) {
  problem.prompt = std::move(prompt);
  if (!options.chat) return;
  if (!options.system.empty()) problem.messages.push_back({"system", options.system});
  problem.messages.push_back({"user", problem.prompt});
}

GeneratedTask::GeneratedTask(const config::TaskOptions& options, const std::string& prompt)
    : options_(options), prompt_(options.prompt.empty() ? prompt : options.prompt, "task.prompt") {}

// An attempt that gives a problem of the other side is drawn again, so a side's problems keep the task's distribution.
Problem GeneratedTask::problem(Side side, uint64_t seed, int64_t index) const {
  if (index < 0) throw std::out_of_range(fmt::format("task {}: problem {}", options_.name, index));
  for (int64_t attempt = 0; attempt < kAttempts; ++attempt) {
    Draws draws(seed, options_.name, side, index, attempt);
    const auto level = options_.levels[static_cast<size_t>(draws.below(static_cast<int64_t>(options_.levels.size())))];
    Drawn drawn = draw(draws, static_cast<int>(level));
    const uint64_t hash = content_hash(drawn.content);
    if (side_of(hash, options_.held_out) != side) continue;
    Problem problem;
    problem.id = fmt::format("{}-{:016x}", options_.name, hash);
    problem.reference = std::move(drawn.reference);
    problem.level = static_cast<int>(level);
    problem.fields = std::move(drawn.fields);
    set_prompt(problem, prompt_.render(problem.fields), options_);
    return problem;
  }
  throw std::runtime_error(
      fmt::format("task {}: found no problem for {} in {} tries (held_out: {}), expected levels with more problems or "
                  "another held_out",
                  options_.name, side == Side::train ? "training" : "evaluation", kAttempts, options_.held_out));
}

std::string GeneratedTask::digest() const {
  return fmt::format("{:016x}", content_hash("generated 1\n" + config::to_json(options_).dump()));
}

}  // namespace cairn::rl
