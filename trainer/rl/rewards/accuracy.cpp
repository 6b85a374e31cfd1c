#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/rewards/kinds.h"
#include "trainer/rl/rewards/number.h"

namespace cairn::rl {
namespace {

const std::vector<std::string> kPlaces = {"boxed", "hashes", "tag", "last"};

std::optional<Number> number_at(const std::string& place, std::string_view text) {
  if (auto whole = whole_number(text)) return whole;
  return place == "hashes" ? first_number(text) : only_number(text);
}

// The first place that is there decides, a number in it or not.
std::optional<Number> find_number(std::string_view text, const std::vector<std::string>& from) {
  for (const auto& place : from.empty() ? kPlaces : from) {
    if (place == "last") return last_number(text);
    if (const auto content = at_place(place, text)) return number_at(place, *content);
  }
  return std::nullopt;
}

// A reference may be an answer written out ("... #### 18", "\boxed{18}") or the number alone.
std::optional<Number> reference_number(const std::string& reference) {
  if (auto whole = whole_number(reference)) return whole;
  for (const char* place : {"hashes", "boxed"})
    if (const auto content = at_place(place, reference)) return number_at(place, *content);
  return only_number(reference);
}

class NumberReward : public PlainReward {
 public:
  explicit NumberReward(const config::RewardOptions& options)
      : PlainReward(options.label), from_(options.from), after_think_(options.after_think) {}

  std::optional<std::string> answer(const Sample& sample) const override {
    const auto number = find_number(answer_part(sample, after_think_), from_);
    return number ? std::optional(number_text(*number)) : std::nullopt;
  }

 protected:
  Verdict verdict(const Sample& sample) const override {
    const auto right = number_is_right(sample, from_, after_think_);
    return right ? Verdict{*right ? 1.0 : 0.0, nullptr} : Verdict{};
  }

 private:
  std::vector<std::string> from_;
  bool after_think_;
};

}  // namespace

std::optional<bool> number_is_right(const Sample& sample, const std::vector<std::string>& from, bool after_think) {
  const auto expected = reference_number(sample.problem->reference);
  if (!expected) return std::nullopt;
  const auto found = find_number(answer_part(sample, after_think), from);
  return found && same_number(*found, *expected);
}

std::unique_ptr<Reward> make_number(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<NumberReward>(options);
}

}  // namespace cairn::rl
