#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>

#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/rewards/expression.h"
#include "trainer/rl/rewards/kinds.h"

namespace cairn::rl {
namespace {

const std::vector<std::string> kPlaces = {"boxed", "hashes", "tag", "last_line"};

// Marks around an expression: $...$, `...`, a full stop.
std::string_view bare(std::string_view text) {
  constexpr std::string_view kAround = " \t\r\n$`*\"'.";
  const auto first = text.find_first_not_of(kAround);
  if (first == text.npos) return text.substr(0, 0);
  return text.substr(first, text.find_last_not_of(kAround) - first + 1);
}

class CountdownReward : public PlainReward {
 public:
  explicit CountdownReward(const config::RewardOptions& options) : PlainReward(options.label), options_(options) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    const auto [numbers, target] = question(*sample.problem);
    const auto text = answer_part(sample, options_.after_think);
    for (const auto& place : options_.from.empty() ? kPlaces : options_.from)
      if (const auto content = at_place(place, text)) return {score(*content, numbers, target), nullptr};
    return {0.0, nullptr};
  }

 private:
  static std::pair<std::map<std::string, int64_t>, Rational> question(const Problem& problem) {
    const auto& fields = problem.fields;
    const auto numbers = fields.find("numbers"), target = fields.find("target");
    const bool fits =
        numbers != fields.end() && numbers->is_array() && !numbers->empty() &&
        std::all_of(numbers->begin(), numbers->end(), [](const Json& n) { return n.is_number_integer(); }) &&
        target != fields.end() && target->is_number_integer();
    if (!fits)
      throw std::runtime_error(
          fmt::format("reward countdown: problem {}{}{} has no fields `numbers` (whole numbers) and `target`",
                      problem.id, problem.source.empty() ? "" : ", ", problem.source));
    std::map<std::string, int64_t> counts;
    for (const auto& number : *numbers) ++counts[Integer(number.get<int64_t>()).text()];
    return {counts, Rational{Integer(target->get<int64_t>()), 1}};
  }

  double score(std::string_view content, const std::map<std::string, int64_t>& numbers, const Rational& target) const {
    std::string_view text = bare(content);
    if (const auto equals = text.find('='); equals != text.npos) {  // "1 + 2 = 3": the claim has to be the target
      const auto claim = parse_expression(bare(text.substr(equals + 1)));
      if (!claim || claim->numbers.size() != 1 || !claim->value || !(*claim->value == target)) return 0;
      text = bare(text.substr(0, equals));
    }
    const auto expression = parse_expression(text);
    if (!expression) return 0;
    std::map<std::string, int64_t> used;
    for (const auto& number : expression->numbers) ++used[number.text()];
    if (options_.use_all ? used != numbers : !within(used, numbers)) return 0;
    return expression->value && *expression->value == target ? 1 : options_.partial;
  }

  static bool within(const std::map<std::string, int64_t>& used, const std::map<std::string, int64_t>& numbers) {
    return std::all_of(used.begin(), used.end(), [&](const auto& entry) {
      const auto given = numbers.find(entry.first);
      return given != numbers.end() && entry.second <= given->second;
    });
  }

  config::RewardOptions options_;
};

}  // namespace

std::unique_ptr<Reward> make_countdown_reward(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<CountdownReward>(options);
}

}  // namespace cairn::rl
