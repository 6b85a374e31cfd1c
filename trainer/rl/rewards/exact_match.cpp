#include <algorithm>
#include <cctype>

#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/rewards/kinds.h"

namespace cairn::rl {
namespace {

const std::vector<std::string> kPlaces = {"boxed", "hashes", "tag", "text"};

class ExactMatch : public PlainReward {
 public:
  explicit ExactMatch(const config::RewardOptions& options)
      : PlainReward(options.label),
        from_(options.from.empty() ? kPlaces : options.from),
        after_think_(options.after_think) {
    const auto has = [&](const char* name) {
      return std::find(options.normalize.begin(), options.normalize.end(), name) != options.normalize.end();
    };
    articles_ = has("articles");
    case_ = has("case");
    punctuation_ = has("punctuation");
    space_ = has("space") || articles_;  // an article that goes leaves blanks
  }

  std::optional<std::string> answer(const Sample& sample) const override {
    const auto found = find(sample);
    if (!found) return std::nullopt;
    std::string text = normal(*found);
    return text.empty() ? std::nullopt : std::optional(std::move(text));
  }

 protected:
  Verdict verdict(const Sample& sample) const override {
    const auto found = find(sample);
    return {found && normal(*found) == normal(sample.problem->reference) ? 1.0 : 0.0, nullptr};
  }

 private:
  std::optional<std::string_view> find(const Sample& sample) const {
    const auto text = answer_part(sample, after_think_);
    for (const auto& place : from_)
      if (const auto content = at_place(place, text)) return content;
    return std::nullopt;
  }

  std::string normal(std::string_view text) const {
    std::string marked(text);
    for (char& c : marked) {
      if (case_) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      if (punctuation_ && std::ispunct(static_cast<unsigned char>(c))) c = ' ';
    }
    if (!space_) return marked;
    std::string out, word;
    const auto finish = [&] {
      std::string lower = word;
      for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      const bool article = articles_ && (lower == "a" || lower == "an" || lower == "the");
      if (!word.empty() && !article) out += (out.empty() ? "" : " ") + word;
      word.clear();
    };
    for (const char c : marked) {
      if (std::string_view(" \t\r\n\v\f").find(c) != std::string_view::npos) {
        finish();
      } else {
        word += c;
      }
    }
    finish();
    return out;
  }

  std::vector<std::string> from_;
  bool after_think_, articles_, case_, punctuation_, space_;
};

}  // namespace

std::unique_ptr<Reward> make_exact_match(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<ExactMatch>(options);
}

}  // namespace cairn::rl
