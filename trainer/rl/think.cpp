#include "trainer/rl/think.h"

#include <algorithm>

namespace cairn::rl {

Reasoned split_reasoning(std::string_view text, const ThinkTags& tags, bool opened_by_prompt) {
  Reasoned out;
  const auto open = text.find(tags.open);
  const auto close = text.rfind(tags.close);
  out.opened = open != std::string_view::npos;
  out.closed = close != std::string_view::npos;
  const bool starts_inside = out.opened && (!out.closed || open < close);
  const size_t begin = starts_inside ? open + tags.open.size() : 0;
  if (out.closed) {
    out.reasoning = text.substr(begin, close - begin);
    out.answer = text.substr(close + tags.close.size());
  } else if (out.opened || opened_by_prompt) {
    out.reasoning = text.substr(begin);
    out.answer = text.substr(text.size());
  } else {
    out.reasoning = text.substr(0, 0);
    out.answer = text;
  }
  return out;
}

ReasonedTokens count_reasoned(std::span<const std::string> pieces, const ThinkTags& tags, bool opened_by_prompt) {
  std::string text;
  for (const auto& piece : pieces) text += piece;
  const auto count = static_cast<int64_t>(pieces.size());
  const Reasoned parts = split_reasoning(text, tags, opened_by_prompt);
  if (!parts.closed) return parts.opened || opened_by_prompt ? ReasonedTokens{count, 0} : ReasonedTokens{0, count};
  const auto end = static_cast<size_t>(parts.answer.data() - text.data());  // of the closing tag
  ReasonedTokens out;
  for (size_t at = 0; const auto& piece : pieces) {
    ++(at < end ? out.reasoning : out.answer);
    at += piece.size();
  }
  return out;
}

void drop_earlier_reasoning(std::vector<Message>& messages, const ThinkTags& tags) {
  const auto last = std::find_if(messages.rbegin(), messages.rend(), [](const auto& m) { return m.role == "user"; });
  for (auto at = messages.begin(); at != last.base(); ++at) {
    if (at->role != "assistant") continue;
    const Reasoned parts = split_reasoning(at->content, tags);
    if (!parts.opened && !parts.closed) continue;
    std::string answer(parts.answer);
    answer.erase(0, std::min(answer.find_first_not_of(" \t\r\n"), answer.size()));
    at->content = std::move(answer);
  }
}

}  // namespace cairn::rl
