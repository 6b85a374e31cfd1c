#include "trainer/rl/rewards/program.h"

#include <exception>
#include <thread>

#include "trainer/rl/rewards/kinds.h"

namespace cairn::rl {

Json problem_message(const Problem& problem) {
  Json message = {{"problem", problem.id},
                  {"prompt", problem.prompt},
                  {"reference", problem.reference},
                  {"level", problem.level},
                  {"fields", problem.fields}};
  if (!problem.messages.empty()) {
    message["messages"] = Json::array();
    for (const auto& [role, content] : problem.messages)
      message["messages"].push_back({{"role", role}, {"content", content}});
  }
  return message;
}

std::string check_reward(const Json& answer) {
  const auto reward = answer.find("reward");
  if (reward == answer.end()) return "it has no `reward`, expected a number, or null for no verdict";
  if (reward->is_null()) return "";
  if (!reward->is_number() || !std::isfinite(reward->get<double>()))
    return "`reward` is no finite number, expected one, or null for no verdict";
  return "";
}

ChannelOptions channel_options(const config::RewardOptions& options, const std::string& what) {
  return {{options.program, options.argv, options.folder}, what, options.timeout, options.restarts};
}

std::vector<Json> ask_all(std::span<const std::unique_ptr<Channel>> channels, std::vector<Json> questions,
                          const std::vector<std::string>& names, const Channel::Check& check) {
  const size_t each = (questions.size() + channels.size() - 1) / channels.size();
  std::vector<std::vector<Json>> answers(channels.size());
  std::vector<std::exception_ptr> errors(channels.size());
  const auto work = [&](size_t worker) {
    const size_t begin = std::min(worker * each, questions.size()), end = std::min(begin + each, questions.size());
    try {
      answers[worker] =
          channels[worker]->ask({std::make_move_iterator(questions.begin() + static_cast<std::ptrdiff_t>(begin)),
                                 std::make_move_iterator(questions.begin() + static_cast<std::ptrdiff_t>(end))},
                                std::span(names).subspan(begin, end - begin), check);
    } catch (...) {
      errors[worker] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (size_t worker = 1; worker < channels.size(); ++worker) threads.emplace_back(work, worker);
  work(0);
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
  std::vector<Json> out;
  for (auto& part : answers)
    out.insert(out.end(), std::make_move_iterator(part.begin()), std::make_move_iterator(part.end()));
  return out;
}

ProgramReward::ProgramReward(const config::RewardOptions& options) : Reward(options.label) {
  for (int worker = 0; worker < options.workers; ++worker)
    workers_.push_back(std::make_unique<Channel>(channel_options(options, "reward program")));
}

std::vector<Verdict> ProgramReward::judge(std::span<const Sample> samples) {
  std::vector<Json> questions;
  std::vector<std::string> names;
  for (const auto& sample : samples) {
    Json question = problem_message(*sample.problem);
    question["completion"] = sample.completion;
    question["tokens"] = sample.ids.size();
    question["truncated"] = sample.truncated;
    questions.push_back(std::move(question));
    names.push_back(sample.problem->source.empty() ? sample.problem->id : sample.problem->source);
  }
  std::vector<Verdict> out;
  for (auto& answer : ask_all(workers_, std::move(questions), names, check_reward)) {
    Verdict verdict;
    if (!answer["reward"].is_null()) verdict.reward = answer["reward"].get<double>();
    if (const auto extra = answer.find("extra"); extra != answer.end()) verdict.extra = std::move(*extra);
    out.push_back(std::move(verdict));
  }
  return out;
}

std::unique_ptr<Reward> make_program(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<ProgramReward>(options);
}

}  // namespace cairn::rl
