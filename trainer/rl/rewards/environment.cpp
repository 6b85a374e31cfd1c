#include "trainer/rl/rewards/environment.h"

#include <fmt/format.h>

#include "trainer/rl/rewards/program.h"

namespace cairn::rl {
namespace {

std::string fault_of(const Json& answer) {
  const auto next = answer.find("continue"), done = answer.find("done");
  if (done != answer.end() && !done->is_boolean()) return "`done` is neither true nor false";
  const bool ends = done != answer.end() && done->get<bool>();
  if (next == answer.end()) {
    if (const std::string wrong = check_reward(answer); !wrong.empty())
      return answer.contains("reward") ? wrong : "it has neither `continue` (a text) nor `reward` (a number)";
    return done != answer.end() && !ends ? "`done` is false without `continue`, expected the text to go on with" : "";
  }
  if (!next->is_string()) return "`continue` is no text";
  if (answer.contains("reward")) return "it has both `continue` and `reward`, expected one of them";
  return ends ? "`done` is true beside `continue`, expected a `reward` at the end" : "";
}

}  // namespace

Environment::Environment(const config::RewardOptions& options) {
  for (int worker = 0; worker < options.workers; ++worker)
    workers_.push_back(std::make_unique<Channel>(channel_options(options, "environment program")));
}

std::vector<EnvironmentAnswer> Environment::step(std::span<const Turn> turns) {
  std::vector<Json> questions;
  std::vector<std::string> names;
  for (const auto& turn : turns) {
    Json question = problem_message(*turn.problem);
    question["turn"] = turn.turn;
    question["transcript"] = Json::array();
    for (const auto& [role, content] : turn.transcript)
      question["transcript"].push_back({{"role", role}, {"content", content}});
    question["completion"] = turn.transcript.empty() ? "" : turn.transcript.back().content;
    question["tokens"] = turn.tokens;
    question["truncated"] = turn.truncated;
    questions.push_back(std::move(question));
    names.push_back(
        fmt::format("{}, turn {}", turn.problem->source.empty() ? turn.problem->id : turn.problem->source, turn.turn));
  }
  std::vector<EnvironmentAnswer> out;
  for (auto& answer : ask_all(workers_, std::move(questions), names, fault_of)) {
    EnvironmentAnswer step;
    if (answer.contains("continue")) {
      step.next = answer["continue"].get<std::string>();
    } else if (!answer["reward"].is_null()) {
      step.reward = answer["reward"].get<double>();
    }
    if (const auto extra = answer.find("extra"); extra != answer.end()) step.extra = std::move(*extra);
    out.push_back(std::move(step));
  }
  return out;
}

}  // namespace cairn::rl
