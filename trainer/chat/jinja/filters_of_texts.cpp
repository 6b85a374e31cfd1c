// Filters of texts, of numbers and of any value.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/chat/jinja/filters.h"
#include "trainer/chat/jinja/format.h"
#include "trainer/chat/jinja/text.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

using Call = FilterCall;

// A text as markupsafe's soft_str gives it; one marked safe would stay so, which nothing here does.
std::string soft(const Value& value) {
  if (value.safe()) unsupported("this filter on a text marked safe");
  return to_text(value);
}

// ---- texts ----

Value trim(const Call& c) {
  const auto a = c.bind({"chars"});
  const std::string text = soft(c.value);
  return strip(text, given(a[0]) ? std::optional<std::string_view>(text_argument(*a[0])) : std::nullopt);
}

Value replace_filter(const Call& c) {
  const auto a = c.bind({"old", "new", "count"}, 2);
  return replace(to_text(c.value), to_text(*a[0]), to_text(*a[1]), given(a[2]) ? integer_argument(*a[2]) : -1);
}

Value center(const Call& c) {
  const auto a = c.bind({"width"});
  return attribute_of(c.host, soft(c.value), "center")
      .function()
      .call({.positional = {a[0].value_or(80)}, .named = {}});
}

Value indent(const Call& c) {
  const auto a = c.bind({"width", "first", "blank"});
  const std::string text = text_argument(c.value) + "\n";
  const Value width = a[0].value_or(4);
  if (!width.is(Type::text) && integer_argument(width) > 1'000'000) throw Error(Fault::limit, "too wide a text");
  const std::string indention =
      width.is(Type::text) ? text_argument(width) : std::string(std::max<int64_t>(integer_argument(width), 0), ' ');
  std::string out;
  bool first = true;
  for (const auto line : split_lines(text, false)) {
    if (!first) out += "\n";
    if (!first && (is_set(a[2]) || !line.empty())) out += indention;
    out += line;
    first = false;
  }
  return is_set(a[1]) ? indention + out : out;
}

Value truncate(const Call& c) {
  const auto a = c.bind({"length", "killwords", "end", "leeway"});
  const int64_t most = a[0] ? integer_argument(*a[0]) : 255, leeway = given(a[3]) ? integer_argument(*a[3]) : 5;
  const std::string end = a[2] ? text_argument(*a[2]) : "...";
  if (most < length(end)) fail(fmt::format("expected length >= {}, got {}", length(end), most));
  if (leeway < 0) fail(fmt::format("expected leeway >= 0, got {}", leeway));
  const auto size = size_of(c.value);
  if (size && *size <= most + leeway) return c.value;
  const std::string& text = text_argument(c.value);
  std::string_view kept = std::string_view(text).substr(0, offset_of(text, most - length(end)));
  if (!is_set(a[1])) kept = split(kept, " ", 1, true)[0];
  return std::string(kept) + end;
}

Value word_count(const Call& c) {
  c.bind({});
  int64_t words = 0;
  bool inside = false;
  data::for_each_char(soft(c.value), [&](uint32_t ch, std::string_view bytes) {
    const bool word = ch == '_' || is_alnum(bytes);
    words += word && !inside;
    inside = word;
  });
  return words;
}

std::string quoted_url(std::string_view text, bool query) {
  std::string out;
  for (const char byte : text) {
    if (std::isalnum(static_cast<unsigned char>(byte)) ||
        (byte && std::string_view("_.-~").find(byte) != std::string_view::npos) || (byte == '/' && !query)) {
      out += byte;
    } else if (byte == ' ' && query) {
      out += '+';
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(byte));
    }
  }
  return out;
}

Value url_encode(const Call& c) {
  c.bind({});
  if (c.value.is(Type::text) || !is_iterable(c.value)) return quoted_url(to_text(c.value), false);
  std::string out;
  for (const Value& pair :
       to_list(c.value.is(Type::dict) ? Value(View{View::items, c.value.shared_dict()}) : c.value)) {
    const List parts = to_list(pair);
    if (parts.size() != 2) fail("a pair of key and value is needed");
    out += (out.empty() ? "" : "&") + quoted_url(to_text(parts[0]), true) + "=" + quoted_url(to_text(parts[1]), true);
  }
  return out;
}

Value format_filter(const Call& c) {
  if (c.arguments.named.empty()) return percent_format(soft(c.value), tuple(c.arguments.positional));
  if (!c.arguments.positional.empty()) fail("can't handle positional and keyword arguments at the same time");
  Dict values;
  for (const auto& [key, value] : c.arguments.named) values.set(key, value);
  return percent_format(soft(c.value), values);
}

Value to_json_filter(const Call& c) {
  const auto a = c.bind({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style{
      .ascii = is_set(a[0]), .sort_keys = is_set(a[3]), .indent = {}, .item_separator = ", ", .key_separator = ": "};
  if (given(a[1])) {
    if (!a[1]->is(Type::text) && integer_argument(*a[1]) > 1000) throw Error(Fault::limit, "too wide an indent");
    style.indent =
        a[1]->is(Type::text) ? a[1]->text() : std::string(std::max<int64_t>(integer_argument(*a[1]), 0), ' ');
    style.item_separator = ",";
  }
  if (given(a[2])) {
    const List separators = to_list(*a[2]);
    if (separators.size() != 2) fail("tojson: separators: expected two");
    style.item_separator = text_argument(separators[0]);
    style.key_separator = text_argument(separators[1]);
  }
  std::string text = to_json(c.value, style);
  c.host.spend(static_cast<int64_t>(text.size() / 16));
  return text;
}

// ---- numbers ----

Value to_int(const Call& c) {
  const auto a = c.bind({"default", "base"});
  const Value fallback = a[0].value_or(0);
  const auto from_real = [&](double x) -> Value {
    if (std::isnan(x)) return fallback;
    if (std::abs(x) >= 9.2e18) unsupported("an integer beyond 64 bits");
    return static_cast<int64_t>(x);
  };
  switch (c.value.type()) {
    case Type::undefined:
      fail_undefined(c.value);
    case Type::boolean:
    case Type::integer:
      return integer_argument(c.value);
    case Type::real:
      if (std::isinf(c.value.real())) fail("cannot convert float infinity to integer");
      return from_real(c.value.real());
    case Type::text: {
      if (const auto number = to_integer(c.value.text(), a[1] ? static_cast<int>(integer_argument(*a[1])) : 10))
        return *number;
      const auto real = to_real(c.value.text());
      return real && !std::isinf(*real) ? from_real(*real) : fallback;
    }
    default:
      return fallback;
  }
}

Value to_float(const Call& c) {
  const auto a = c.bind({"default"});
  if (c.value.is(Type::undefined)) fail_undefined(c.value);
  if (c.value.is(Type::real)) return c.value;
  if (c.value.is(Type::boolean) || c.value.is(Type::integer)) return static_cast<double>(integer_argument(c.value));
  const auto number = c.value.is(Type::text) ? to_real(c.value.text()) : std::nullopt;
  return number ? Value(*number) : a[0].value_or(0.0);
}

Value absolute(const Call& c) {
  c.bind({});
  if (c.value.is(Type::undefined)) fail("bad operand type for abs(): 'Undefined'");
  if (c.value.is(Type::real)) return std::abs(c.value.real());
  const int64_t number = integer_argument(c.value);
  return number < 0 ? with_sign("-", number) : Value(number);
}

Value round_filter(const Call& c) {
  const auto a = c.bind({"precision", "method"});
  const int64_t precision = a[0] ? integer_argument(*a[0]) : 0;
  const std::string method = a[1] ? text_argument(*a[1]) : "common";
  if (method != "common" && method != "ceil" && method != "floor") fail("method must be common, ceil or floor");
  if (c.value.is(Type::undefined)) fail_undefined(c.value);
  if (precision < 0 || precision > 300) unsupported("a precision of 'round' below 0 or above 300");
  const bool real = c.value.is(Type::real);
  if (method == "common") {
    if (!real) return integer_argument(c.value);
    if (!std::isfinite(c.value.real())) return c.value;
    return *to_real(
        fmt::format("{:.{}f}", c.value.real(), precision));  // to the nearest, ties of the exact value to even
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double x = real ? c.value.real() : static_cast<double>(integer_argument(c.value));
  if (!std::isfinite(x)) fail("cannot convert float infinity to integer");
  return (method == "ceil" ? std::ceil(x * scale) : std::floor(x * scale)) / scale + 0.0;
}

// ---- any value ----

Value default_filter(const Call& c) {
  const auto a = c.bind({"default_value", "boolean"});
  if (c.value.is(Type::undefined) || (is_set(a[1]) && !truth(c.value))) return a[0].value_or("");
  return c.value;
}

Value safe_filter(const Call& c) {
  c.bind({});
  return Text{std::make_shared<const std::string>(to_text(c.value)), true};
}

Value attr_filter(const Call& c) {
  const auto a = c.bind({"name"}, 1);
  const std::string& name = text_argument(*a[0]);
  const Value found = attribute_of(c.host, c.value, name);
  if (c.value.is(Type::dict) && c.value.dict().find(name)) {
    // The key of a dict is no attribute of it, unless a method has the name.
    if (!found.is(Type::function) || found.function().name != name)
      return undefined("'dict object' has no attribute " + repr(name));
  }
  return found;
}

}  // namespace

const FilterTable& filters_of_texts() {
  static const FilterTable kFilters = {
      {"abs", absolute},
      {"attr", attr_filter},
      {"capitalize", [](const Call& c) -> Value { return c.bind({}), capitalize(soft(c.value)); }},
      {"center", center},
      {"d", default_filter},
      {"default", default_filter},
      {"float", to_float},
      {"format", format_filter},
      {"indent", indent},
      {"int", to_int},
      {"lower", [](const Call& c) -> Value { return c.bind({}), lower(soft(c.value)); }},
      {"replace", replace_filter},
      {"round", round_filter},
      {"safe", safe_filter},
      {"string",
       [](const Call& c) -> Value { return c.bind({}), c.value.is(Type::text) ? c.value : Value(to_text(c.value)); }},
      {"title", [](const Call& c) -> Value { return c.bind({}), title_of_words(soft(c.value)); }},
      {"tojson", to_json_filter},
      {"trim", trim},
      {"truncate", truncate},
      {"upper", [](const Call& c) -> Value { return c.bind({}), upper(soft(c.value)); }},
      {"urlencode", url_encode},
      {"wordcount", word_count},
  };
  return kFilters;
}

}  // namespace cairn::jinja
