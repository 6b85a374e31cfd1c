// The filters of jinja2 3.1 and the `tojson` of chat templates, in tables name -> function.
#pragma once

#include <map>

#include "trainer/chat/jinja/builtins.h"

namespace cairn::jinja {

// value | name(arguments)
struct FilterCall {
  Host& host;
  const Value& value;
  const Arguments& arguments;
  const char* name;

  std::vector<std::optional<Value>> bind(const std::vector<const char*>& names, size_t required = 0) const {
    return jinja::bind(name, arguments, names, required);
  }
};

using FilterTable = std::map<std::string_view, Value (*)(const FilterCall&)>;
const FilterTable& filters_of_texts();  // and of numbers, and of any value
const FilterTable& filters_of_lists();  // and of dicts

// Of an argument that may be left out.
inline bool is_set(const std::optional<Value>& value) { return value && truth(*value); }
inline bool given(const std::optional<Value>& value) { return value && !value->is(Type::none); }

}  // namespace cairn::jinja
