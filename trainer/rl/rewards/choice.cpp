#include <algorithm>
#include <cctype>

#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/rewards/kinds.h"
#include "trainer/rl/rewards/pattern.h"

namespace cairn::rl {
namespace {

const std::vector<std::string> kPlaces = {"boxed", "hashes", "tag", "phrase", "last"};

// "(B)", "B.", "**B**", "\text{B}", "B) Paris", "b": a letter that leads the text. '\0': none.
char leading_letter(std::string_view text) {
  const auto body = trimmed(text);
  size_t i = 0;
  for (const std::string_view command : {"\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{"})
    if (body.starts_with(command)) i = command.size();
  while (i < body.size() && std::string_view("([{*_\"'`$ ").find(body[i]) != std::string_view::npos) ++i;
  if (i >= body.size() || !std::isalpha(static_cast<unsigned char>(body[i]))) return '\0';
  const bool alone = i + 1 >= body.size() || !(std::isalnum(static_cast<unsigned char>(body[i + 1])) ||
                                               body[i + 1] == '\'' || static_cast<unsigned char>(body[i + 1]) >= 0x80);
  const bool single = std::none_of(body.begin() + static_cast<std::ptrdiff_t>(i) + 1, body.end(),
                                   [](unsigned char c) { return std::isalnum(c); });
  if (!alone || (std::islower(static_cast<unsigned char>(body[i])) && !single)) return '\0';
  // "A good answer": the article
  if ((body[i] == 'A' || body[i] == 'I') && i + 2 < body.size() && body[i + 1] == ' ' &&
      std::islower(static_cast<unsigned char>(body[i + 2])))
    return '\0';
  return static_cast<char>(std::toupper(static_cast<unsigned char>(body[i])));
}

class Choice : public PlainReward {
 public:
  explicit Choice(const config::RewardOptions& options) : PlainReward(options.label), options_(options) {}

  std::optional<std::string> answer(const Sample& sample) const override {
    const char letter = chosen(sample);
    return letter ? std::optional(std::string(1, letter)) : std::nullopt;
  }

 protected:
  Verdict verdict(const Sample& sample) const override {
    const char expected = leading_letter(sample.problem->reference);
    if (!admitted(expected, sample)) return {};
    return {chosen(sample) == expected ? 1.0 : 0.0, nullptr};
  }

 private:
  bool admitted(char letter, const Sample& sample) const {
    if (letter == '\0') return false;
    if (!options_.letters.empty()) return options_.letters.find(letter) != std::string::npos;
    const auto options = sample.problem->fields.find("options");
    const size_t count = options != sample.problem->fields.end() && options->is_array() ? options->size() : 10;
    return letter - 'A' < static_cast<int>(count);
  }

  // The last letter of those that `pattern` finds and that are options. A text that the search gives up on has none.
  char last_of(const Pattern& pattern, std::string_view text, const Sample& sample) const {
    std::string letter;
    if (pattern.search_last(text, &letter) != Pattern::Outcome::found || letter.empty()) return '\0';
    return admitted(letter[0], sample) ? letter[0] : '\0';
  }

  char at(const std::string& place, std::string_view text, const Sample& sample, bool& there) const {
    static const Pattern phrase(
        R"((?i:\b(?:answer|option|choice))(?:\s+(?i:is|would\s+be|must\s+be|should\s+be))?\s*[*_]*\s*[:=\-]?\s*)"
        R"((?i:option\s+|choice\s+)?(?:\\text\{)?[(\["'*_$ ]{0,4}([A-Z])(?![A-Za-z0-9'])(?! [a-z]))");
    static const Pattern bracketed(R"([(\[]([A-Z])[)\]])");
    static const Pattern alone(R"((?<![A-Za-z0-9'\\])([A-Z])(?![A-Za-z0-9'])(?!(?<=[AI]) [a-z]))");
    there = true;
    if (place == "phrase") {
      const char letter = last_of(phrase, text, sample);
      there = letter != '\0';
      return letter;
    }
    if (place == "last") {
      const char letter = last_of(bracketed, text, sample);
      return letter != '\0' ? letter : last_of(alone, text, sample);
    }
    const auto content = at_place(place, text);
    there = content.has_value();
    const char letter = there ? leading_letter(*content) : '\0';
    return admitted(letter, sample) ? letter : '\0';
  }

  char chosen(const Sample& sample) const {
    const auto text = answer_part(sample, options_.after_think);
    for (const auto& place : options_.from.empty() ? kPlaces : options_.from) {
      bool there = false;
      const char letter = at(place, text, sample, there);
      if (there) return letter;
    }
    return '\0';
  }

  config::RewardOptions options_;
};

}  // namespace

std::unique_ptr<Reward> make_choice(const config::RewardOptions& options, const RewardContext&) {
  return std::make_unique<Choice>(options);
}

}  // namespace cairn::rl
