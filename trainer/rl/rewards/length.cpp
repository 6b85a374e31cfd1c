#include <fmt/format.h>

#include <algorithm>
#include <numbers>
#include <set>
#include <stdexcept>

#include "trainer/rl/rewards/kinds.h"

namespace cairn::rl {
namespace {

int64_t longest(const config::RewardOptions& options, const RewardContext& context) {
  const int64_t tokens = options.max_completion_len.value_or(context.max_completion_length);
  if (tokens < 1)
    throw std::invalid_argument(fmt::format(
        "rewards: {}: max_completion_len is not given, expected it where the run has no max_completion_length",
        options.name));
  if (options.soft_punish_cache > tokens)
    throw std::invalid_argument(fmt::format("rewards: {}: soft_punish_cache is {}, expected at most {} tokens",
                                            options.name, options.soft_punish_cache, tokens));
  return tokens;
}

int64_t tokens_of(const Sample& sample) { return static_cast<int64_t>(sample.ids.size()); }

class SoftOverlong : public PlainReward {
 public:
  SoftOverlong(const config::RewardOptions& options, const RewardContext& context)
      : PlainReward(options.label), longest_(longest(options, context)), cache_(options.soft_punish_cache) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    const int64_t n = tokens_of(sample);
    if (n <= longest_ - cache_) return {0.0, nullptr};
    if (n > longest_) return {-1.0, nullptr};
    return {static_cast<double>(longest_ - cache_ - n) / static_cast<double>(cache_), nullptr};
  }

 private:
  int64_t longest_, cache_;
};

class Cosine : public PlainReward {
 public:
  Cosine(const config::RewardOptions& options, const RewardContext& context)
      : PlainReward(options.label), options_(options), longest_(longest(options, context)) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    const auto right = number_is_right(sample, options_.from, options_.after_think);
    if (!right) return {};
    const double progress = std::min(static_cast<double>(tokens_of(sample)) / static_cast<double>(longest_), 1.0);
    const double low = *right ? options_.min_value_correct : options_.max_value_wrong;
    const double high = *right ? options_.max_value_correct : options_.min_value_wrong;
    return {low + 0.5 * (high - low) * (1 + std::cos(progress * std::numbers::pi)), nullptr};
  }

 private:
  config::RewardOptions options_;
  int64_t longest_;
};

class Repetition : public PlainReward {
 public:
  explicit Repetition(const config::RewardOptions& options)
      : PlainReward(options.label), size_(static_cast<size_t>(options.ngram_size)), penalty_(options.max_penalty) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    if (sample.ids.size() < size_) return {0.0, nullptr};
    const auto less = [this](const int32_t* a, const int32_t* b) {
      return std::lexicographical_compare(a, a + size_, b, b + size_);
    };
    std::set<const int32_t*, decltype(less)> unique(less);
    const size_t total = sample.ids.size() - size_ + 1;
    for (size_t i = 0; i < total; ++i) unique.insert(sample.ids.data() + i);
    const double repeated = 1 - static_cast<double>(unique.size()) / static_cast<double>(total);
    return {repeated > 0 ? repeated * penalty_ : 0.0, nullptr};
  }

 private:
  size_t size_;
  double penalty_;
};

class Length : public PlainReward {
 public:
  explicit Length(const config::RewardOptions& options)
      : PlainReward(options.label),
        target_(options.target),
        coefficient_(options.coefficient),
        at_most_(options.at_most) {}

 protected:
  Verdict verdict(const Sample& sample) const override {
    const int64_t over = tokens_of(sample) - target_;
    if (over == 0 || (at_most_ && over < 0)) return {0.0, nullptr};
    return {-coefficient_ * static_cast<double>(std::abs(over)), nullptr};
  }

 private:
  int64_t target_;
  double coefficient_;
  bool at_most_;
};

}  // namespace

std::unique_ptr<Reward> make_soft_overlong(const config::RewardOptions& options, const RewardContext& context) {
  return std::make_unique<SoftOverlong>(options, context);
}
std::unique_ptr<Reward> make_cosine(const config::RewardOptions& options, const RewardContext& context) {
  return std::make_unique<Cosine>(options, context);
}
std::unique_ptr<Reward> make_repetition(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<Repetition>(options);
}
std::unique_ptr<Reward> make_length(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<Length>(options);
}

}  // namespace cairn::rl
