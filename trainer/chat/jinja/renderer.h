// Walks a template's tree and writes what it says.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/syntax.h"

namespace cairn::jinja {

struct Limits {
  int64_t steps = 100'000'000;        // statements and expressions; 32 bytes of text made count as one
  int64_t bytes = int64_t{256} << 20;  // of one text
};

struct Rendered {
  std::string text;
  std::vector<std::pair<size_t, size_t>> generated;  // bytes [begin, end) from {% generation %}
  // A {% generation %} ran where its text is caught first (a macro, a set block ...): where it ends up is not known.
  bool generated_unknown = false;
};

// Throws Error with the line that ran. `now` is asked where the template asks for the time.
Rendered render(const Template& parsed, const std::vector<std::pair<std::string, Value>>& variables,
                const std::function<std::chrono::system_clock::time_point()>& now, const Limits& limits = {});

}  // namespace cairn::jinja
