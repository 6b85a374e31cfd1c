// Texts with places for values.
#pragma once

#include "trainer/chat/jinja/builtins.h"

namespace cairn::jinja {

// TEXT % VALUES, printf style.
std::string percent_format(const std::string& text, const Value& values);
// TEXT.format(...): fields by position or name, !r and !s.
std::string brace_format(Host& host, const std::string& text, const Arguments& arguments);

}  // namespace cairn::jinja
