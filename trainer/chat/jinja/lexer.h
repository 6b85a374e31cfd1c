// The text of a template in tokens, as jinja2's lexer cuts it with trim_blocks and lstrip_blocks: the newline after a
// block goes, and so does the whitespace before one that begins its line; `-` strips more, `+` keeps.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "trainer/chat/jinja/value.h"

namespace cairn::jinja {

struct Token {
  enum Kind { data, block_begin, block_end, variable_begin, variable_end, name, text, number, sign, end } kind;
  std::string text_of;  // data, name, string (unescaped), operator
  Value value = {};     // of a number
  int line = 1;

  bool is(Kind k, std::string_view t) const { return kind == k && text_of == t; }
  bool is_sign(std::string_view t) const { return is(sign, t); }
  bool is_name(std::string_view t) const { return is(name, t); }
};

// Comments and raw marks are gone; the last token is `end`. Throws Error (syntax, unsupported) with its line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace cairn::jinja
