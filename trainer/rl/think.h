// Reasoning between tags and the answer behind it: taking a completion apart, counting its tokens, and leaving the
// reasoning of earlier turns out of a conversation.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::rl {

struct ThinkTags {
  std::string open = "<think>", close = "</think>";
};

struct Reasoned {
  std::string_view reasoning;  // without the tags; views into the text
  std::string_view answer;     // what a judge looks at
  bool opened = false;         // an opening tag stands in the text
  bool closed = false;
};

// The reasoning ends at the last closing tag, as in the chat templates of reasoning models; the opening one may be
// missing, since many templates end the prompt with it. Opened and never closed: all behind the tag is reasoning and
// there is no answer. Without any tag all is answer.
// `opened_by_prompt`: the prompt ended with the opening tag, so a text that never closes has no answer.
Reasoned split_reasoning(std::string_view text, const ThinkTags& tags = {}, bool opened_by_prompt = false);

struct ReasonedTokens {
  int64_t reasoning = 0;  // the tags count as reasoning
  int64_t answer = 0;
};

// `pieces`: the text of each token of a completion, in order. A token that holds the end of the closing tag counts as
// reasoning.
ReasonedTokens count_reasoned(std::span<const std::string> pieces, const ThinkTags& tags = {},
                              bool opened_by_prompt = false);

struct Message {
  std::string role, content;
  bool operator==(const Message&) const = default;
};

// What the assistant said before the last user message loses its reasoning and the blank space behind it; what follows
// that message (steps of one turn, with tools between) keeps it.
void drop_earlier_reasoning(std::vector<Message>& messages, const ThinkTags& tags = {});

}  // namespace cairn::rl
