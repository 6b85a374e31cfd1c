#include "trainer/chat/jinja/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

const FilterTable& table() {
  static const FilterTable kAll = [] {
    FilterTable all = filters_of_texts();
    all.insert(filters_of_lists().begin(), filters_of_lists().end());
    return all;
  }();
  return kAll;
}

// What Jinja has and this engine does not: HTML, chance, and what no chat template was seen to use.
constexpr std::string_view kLacking[] = {"e",      "escape",    "filesizeformat", "forceescape", "groupby", "pprint",
                                         "random", "striptags", "urlize",         "wordwrap",    "xmlattr"};

}  // namespace

Standing filter_standing(std::string_view name) {
  if (table().count(name)) return Standing::known;
  return std::find(std::begin(kLacking), std::end(kLacking), name) != std::end(kLacking) ? Standing::lacking
                                                                                         : Standing::unknown;
}

Value apply_filter(Host& host, std::string_view name, const Value& value, const Arguments& arguments) {
  const auto at = table().find(name);
  if (at == table().end()) {
    if (filter_standing(name) == Standing::lacking) unsupported(fmt::format("the filter '{}'", name));
    fail(fmt::format("No filter named {}.", repr(name)));
  }
  if (value.is(Type::text)) host.spend(static_cast<int64_t>(value.text().size() / 32));
  return at->second(FilterCall{host, value, arguments, at->first.data()});
}

}  // namespace cairn::jinja
