#include "trainer/rl/rewards/kinds.h"
#include "trainer/rl/rewards/pattern.h"

namespace cairn::rl {
namespace {

class Format : public PlainReward {
 public:
  explicit Format(const config::RewardOptions& options) : PlainReward(options.label), pattern_(options.pattern) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    const auto outcome = pattern_.search(sample.completion);
    if (outcome == Pattern::Outcome::gave_up) return {0.0, Json{{"gave_up", true}}};
    return {outcome == Pattern::Outcome::found ? 1.0 : 0.0, nullptr};
  }

 private:
  Pattern pattern_;
};

class ThinkFormat : public PlainReward {
 public:
  using PlainReward::PlainReward;

 protected:
  Verdict verdict(const Sample& sample) const override {
    const ThinkTags tags;
    auto text = sample.completion;
    if (!sample.opened_by_prompt) {
      if (!text.starts_with(tags.open)) return {0.0, nullptr};
      text.remove_prefix(tags.open.size());
    }
    const bool one = text.find(tags.open) == text.npos, closed = text.find(tags.close) != text.npos;
    return {one && closed ? 1.0 : 0.0, nullptr};
  }
};

}  // namespace

std::unique_ptr<Reward> make_format(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<Format>(options);
}

std::unique_ptr<Reward> make_think_format(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<ThinkFormat>(options.label);
}

}  // namespace cairn::rl
