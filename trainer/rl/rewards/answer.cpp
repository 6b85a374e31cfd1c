#include "trainer/rl/rewards/answer.h"

#include <fmt/format.h>

#include <map>
#include <stdexcept>

#include "trainer/rl/rewards/number.h"
#include "trainer/rl/rewards/pattern.h"

namespace cairn::rl {
namespace {
using Place = std::optional<std::string_view> (*)(std::string_view);
const std::map<std::string, Place> kPlaces = {
    {"hashes", behind_hashes},
    {"boxed", in_box},
    {"tag", in_tag},
    {"last_line", last_line},
    {"text", [](std::string_view text) { return std::optional(text); }},
};

// The content of the braces that open at text[open]; none where they do not close.
std::optional<std::string_view> in_braces(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;  // \{ and \} are characters
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return text.substr(open + 1, i - open - 1);
    }
  }
  return std::nullopt;
}
}  // namespace

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const auto first = text.find_first_not_of(kBlank);
  if (first == text.npos) return text.substr(0, 0);
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::optional<std::string_view> behind_hashes(std::string_view text) {
  const auto at = text.rfind("####");
  if (at == text.npos) return std::nullopt;
  const auto rest = text.substr(at + 4);
  return rest.substr(0, rest.find('\n'));
}

std::optional<std::string_view> in_box(std::string_view text) {
  // NOTE: only the last few are tried: a text of nothing but boxes that never close would cost its square.
  int tries = 8;
  for (size_t end = text.size(); tries > 0; --tries) {
    const auto box = text.rfind("box", end);
    if (box == text.npos) return std::nullopt;
    for (const std::string_view name : {"\\boxed", "\\fbox"}) {
      const size_t prefix = name.find("box");
      if (box < prefix || !text.substr(box - prefix).starts_with(name)) continue;
      size_t open = box - prefix + name.size();
      while (open < text.size() && text[open] == ' ') ++open;
      if (open < text.size() && text[open] == '{')
        if (const auto content = in_braces(text, open)) return content;
    }
    if (box == 0) return std::nullopt;
    end = box - 1;
  }
  return std::nullopt;
}

std::optional<std::string_view> in_tag(std::string_view text) {
  constexpr std::string_view kOpen = "<answer>", kClose = "</answer>";
  const auto close = text.rfind(kClose);
  if (close == text.npos) return std::nullopt;
  const auto open = text.substr(0, close).rfind(kOpen);
  if (open == text.npos) return std::nullopt;
  return text.substr(open + kOpen.size(), close - open - kOpen.size());
}

std::optional<std::string_view> last_line(std::string_view text) {
  const auto body = trimmed(text);
  if (body.empty()) return std::nullopt;
  const auto start = body.rfind('\n');
  return start == body.npos ? body : body.substr(start + 1);
}

std::optional<std::string_view> at_place(const std::string& name, std::string_view text) {
  const auto place = kPlaces.find(name);
  if (place == kPlaces.end()) throw std::invalid_argument(fmt::format("'{}' is no place of an answer", name));
  return place->second(text);
}

Extract::Extract(const std::string& name, const std::string& pattern) : name_(name) {
  if (name == "pattern") {
    pattern_ = std::make_shared<const Pattern>(pattern);
    if (pattern_->groups() < 1)
      throw std::invalid_argument(fmt::format("task.pattern: `{}` has no group, expected one in parentheses", pattern));
  } else if (name != "last_number" && !kPlaces.contains(name)) {
    throw std::invalid_argument(fmt::format("task.extract: '{}' is no place of an answer", name));
  }
}

std::optional<std::string> Extract::operator()(std::string_view text) const {
  if (pattern_) {
    std::string group;
    if (pattern_->search(text, &group) != Pattern::Outcome::found) return std::nullopt;
    return std::string(trimmed(group));
  }
  if (name_ == "last_number") {
    const auto number = last_number(text);
    return number ? std::optional(number_text(*number)) : std::nullopt;
  }
  const auto found = at_place(name_, text);
  return found ? std::optional(std::string(trimmed(*found))) : std::nullopt;
}

}  // namespace cairn::rl
