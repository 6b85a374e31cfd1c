// The filters of jinja2 3.1 and the `tojson` of chat templates.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/format.h"
#include "trainer/chat/jinja/text.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

using Next = std::function<std::optional<Value>()>;

struct Call {
  Host& host;
  const Value& value;
  const Arguments& arguments;
  const char* name;

  std::vector<std::optional<Value>> bind(const std::vector<const char*>& names, size_t required = 0) const {
    return jinja::bind(name, arguments, names, required);
  }
};

bool flag(const std::optional<Value>& value) { return value && truth(*value); }
bool given(const std::optional<Value>& value) { return value && !value->is(Type::none); }

// A text as markupsafe's soft_str gives it; one marked safe would stay so, which nothing here does.
std::string soft(const Value& value) {
  if (value.safe()) unsupported("this filter on a text marked safe");
  return to_text(value);
}

Value lowered(const Value& value) { return value.is(Type::text) ? Value(lower(value.text())) : value; }

// `attribute` of map, sort, selectattr ...: a path with dots, whose digits are positions.
std::vector<Value> path_of(const Value& attribute) {
  if (!attribute.is(Type::text)) return {attribute};
  std::vector<Value> parts;
  for (const auto part : split(attribute.text(), ".", -1, false)) {
    const bool digits = is_digit(part);
    const auto number = digits ? to_integer(part, 10) : std::nullopt;
    parts.push_back(number ? Value(*number) : Value(part));
  }
  return parts;
}

Value along(Host& host, Value item, const std::vector<Value>& path, const std::optional<Value>& fallback = {}) {
  for (const Value& part : path) {
    item = item_of(host, item, part);
    if (given(fallback) && item.is(Type::undefined)) item = *fallback;
  }
  return item;
}

// An iterator over VALUE that begins when it is first asked; MAKE gives what it then does.
Value lazily(const Value& value, std::function<Next(const Value&)> make) {
  return generator([value, make = std::move(make), next = Next()]() mutable {
    if (!next) next = make(value);
    return next();
  });
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
  return attribute_of(c.host, soft(c.value), "center").function().call({.positional = {a[0].value_or(80)}, .named = {}});
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
    if (!first && (flag(a[2]) || !line.empty())) out += indention;
    out += line;
    first = false;
  }
  return flag(a[1]) ? indention + out : out;
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
  if (!flag(a[1])) kept = split(kept, " ", 1, true)[0];
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
    if (std::isalnum(static_cast<unsigned char>(byte)) || (byte && std::string_view("_.-~").find(byte) != std::string_view::npos) ||
        (byte == '/' && !query)) {
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
  for (const Value& pair : to_list(c.value.is(Type::dict) ? Value(View{View::items, c.value.shared_dict()}) : c.value)) {
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
  JsonStyle style{.ascii = flag(a[0]), .sort_keys = flag(a[3]), .indent = {}, .item_separator = ", ", .key_separator = ": "};
  if (given(a[1])) {
    if (!a[1]->is(Type::text) && integer_argument(*a[1]) > 1000) throw Error(Fault::limit, "too wide an indent");
    style.indent = a[1]->is(Type::text) ? a[1]->text() : std::string(std::max<int64_t>(integer_argument(*a[1]), 0), ' ');
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
      if (const auto number = to_integer(c.value.text(), a[1] ? static_cast<int>(integer_argument(*a[1])) : 10)) return *number;
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
    return *to_real(fmt::format("{:.{}f}", c.value.real(), precision));  // to the nearest, ties of the exact value to even
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double x = real ? c.value.real() : static_cast<double>(integer_argument(c.value));
  if (!std::isfinite(x)) fail("cannot convert float infinity to integer");
  return (method == "ceil" ? std::ceil(x * scale) : std::floor(x * scale)) / scale + 0.0;
}

// ---- lists and dicts ----

Value size_filter(const Call& c) {
  c.bind({});
  const auto size = size_of(c.value);
  if (!size) fail(fmt::format("object of type '{}' has no len()", type_name(c.value)));
  return *size;
}

Value list_filter(const Call& c) {
  c.bind({});
  List items = to_list(c.value);
  c.host.spend(static_cast<int64_t>(items.size()));
  return items;
}

Value join_filter(const Call& c) {
  const auto a = c.bind({"d", "attribute"});
  const std::string between = a[0] ? to_text(*a[0]) : "";
  const auto path = given(a[1]) ? path_of(*a[1]) : std::vector<Value>();
  std::string out;
  bool first = true;
  for (const Value& item : to_list(c.value)) {
    if (!first) out += between;
    out += to_text(along(c.host, item, path));
    first = false;
    c.host.spend(1 + static_cast<int64_t>(between.size() / 32));
    if (out.size() > size_t{256} << 20) throw Error(Fault::limit, "a text of more than 256 MiB");
  }
  return out;
}

Value items_filter(const Call& c) {
  c.bind({});
  return lazily(c.value, [](const Value& value) -> Next {
    if (value.is(Type::undefined)) return iterate(value);
    if (!value.is(Type::dict)) fail("Can only get item pairs from a mapping.");
    return iterate(View{View::items, value.shared_dict()});
  });
}

Value first_filter(const Call& c) {
  c.bind({});
  const auto item = iterate(c.value)();
  return item ? *item : undefined("No first item, sequence was empty.");
}

// reversed(); fails where Python's does.
List reversed(const Value& value) {
  if (value.is(Type::iterator) || value.is(Type::loop)) fail(fmt::format("'{}' object is not reversible", type_name(value)));
  List items = to_list(value);
  std::reverse(items.begin(), items.end());
  return items;
}

Value last_filter(const Call& c) {
  c.bind({});
  const List items = reversed(c.value);
  return items.empty() ? undefined("No last item, sequence was empty.") : items[0];
}

Value reverse_filter(const Call& c) {
  c.bind({});
  if (c.value.is(Type::text)) return slice_of(c.host, c.value, nullptr, nullptr, -1);
  if (!c.value.is(Type::iterator)) return generator(iterate(reversed(c.value)));
  List items = to_list(c.value);
  std::reverse(items.begin(), items.end());
  return items;
}

void sort_by(List& items, const List& keys, bool descending) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return descending ? less(keys[b], keys[a]) : less(keys[a], keys[b]); });
  List sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  items = std::move(sorted);
}

Value sort_filter(const Call& c) {
  const auto a = c.bind({"reverse", "case_sensitive", "attribute"});
  std::vector<std::vector<Value>> paths;
  if (given(a[2]) && a[2]->is(Type::text)) {
    for (const auto part : split(a[2]->text(), ",", -1, false)) paths.push_back(path_of(part));
  } else {
    paths.push_back(given(a[2]) ? path_of(*a[2]) : std::vector<Value>());
  }
  List items = to_list(c.value), keys;
  c.host.spend(static_cast<int64_t>(items.size()) * 16);
  for (const Value& item : items) {
    List key;
    for (const auto& path : paths) {
      const Value part = along(c.host, item, path);
      key.push_back(flag(a[1]) ? part : lowered(part));
    }
    keys.push_back(std::move(key));
  }
  sort_by(items, keys, flag(a[0]));
  return items;
}

Value dict_sort(const Call& c) {
  const auto a = c.bind({"case_sensitive", "by", "reverse"});
  const Value by = a[1].value_or("key");
  if (!equal(by, "key") && !equal(by, "value")) fail("You can only sort by either \"key\" or \"value\"");
  if (c.value.is(Type::undefined)) fail_undefined(c.value);
  if (!c.value.is(Type::dict)) fail(fmt::format("'{}' object has no attribute 'items'", type_name(c.value)));
  List items, keys;
  for (const auto& [key, value] : c.value.dict().entries) {
    items.push_back(tuple({key, value}));
    const Value& part = equal(by, "key") ? key : value;
    keys.push_back(flag(a[0]) ? part : lowered(part));
  }
  c.host.spend(static_cast<int64_t>(items.size()) * 16);
  sort_by(items, keys, flag(a[2]));
  return items;
}

Value unique_filter(const Call& c) {
  const auto a = c.bind({"case_sensitive", "attribute"});
  const auto path = given(a[1]) ? path_of(*a[1]) : std::vector<Value>();
  return lazily(c.value, [&host = c.host, path, exact = flag(a[0])](const Value& value) -> Next {
    return [&host, path, exact, pull = iterate(value), seen = List()]() mutable -> std::optional<Value> {
      while (auto item = pull()) {
        Value key = along(host, *item, path);
        if (!exact) key = lowered(key);
        if (!is_hashable(key)) fail(fmt::format("unhashable type: '{}'", type_name(key)));
        host.spend(1 + static_cast<int64_t>(seen.size()));
        if (std::any_of(seen.begin(), seen.end(), [&](const Value& s) { return equal(s, key); })) continue;
        seen.push_back(std::move(key));
        return item;
      }
      return std::nullopt;
    };
  });
}

Value extreme(const Call& c, bool largest) {
  const auto a = c.bind({"case_sensitive", "attribute"});
  const auto path = given(a[1]) ? path_of(*a[1]) : std::vector<Value>();
  std::optional<Value> best, best_key;
  const auto pull = iterate(c.value);
  while (auto item = pull()) {
    c.host.spend(1);
    Value key = along(c.host, *item, path);
    if (!flag(a[0])) key = lowered(key);
    if (best && !(largest ? less(*best_key, key) : less(key, *best_key))) continue;
    best = item;
    best_key = std::move(key);
  }
  return best ? *best : undefined("No aggregated item, sequence was empty.");
}

Value sum_filter(const Call& c) {
  const auto a = c.bind({"attribute", "start"});
  const auto path = given(a[0]) ? path_of(*a[0]) : std::vector<Value>();
  Value total = a[1].value_or(0);
  if (total.is(Type::text)) fail("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : to_list(c.value)) total = binary(c.host, "+", total, along(c.host, item, path));
  return total;
}

Value map_filter(const Call& c) {
  return lazily(c.value, [&host = c.host, arguments = c.arguments](const Value& value) -> Next {
    if (!truth(value)) return [] { return std::optional<Value>(); };
    if (arguments.positional.empty() && !arguments.named.empty()) {
      const auto a = jinja::bind("map", arguments, {"attribute", "default"}, 0);
      if (a[0])
        return [&host, a, path = a[0]->is(Type::none) ? std::vector<Value>() : path_of(*a[0]),
                pull = iterate(value)]() -> std::optional<Value> {
          auto item = pull();
          if (item) item = along(host, *item, path, a[1]);
          return item;
        };
    }
    if (arguments.positional.empty()) fail("map requires a filter argument");
    const std::string name = text_argument(arguments.positional[0]);
    Arguments rest = arguments;
    rest.positional.erase(rest.positional.begin());
    return [&host, name, rest, pull = iterate(value)]() -> std::optional<Value> {
      auto item = pull();
      host.spend(1);
      if (item) item = apply_filter(host, name, *item, rest);
      return item;
    };
  });
}

// select, reject, selectattr, rejectattr.
Value choose(const Call& c, bool keep, bool by_attribute) {
  return lazily(c.value, [&host = c.host, arguments = c.arguments, keep, by_attribute](const Value& value) -> Next {
    if (!truth(value)) return [] { return std::optional<Value>(); };
    Arguments rest = arguments;
    auto& positional = rest.positional;
    std::vector<Value> path;
    if (by_attribute) {
      if (positional.empty()) fail("Missing parameter for attribute name");
      if (!positional[0].is(Type::none)) path = path_of(positional[0]);
      positional.erase(positional.begin());
    }
    std::optional<std::string> test;
    if (!positional.empty()) {
      test = text_argument(positional[0]);
      positional.erase(positional.begin());
    }
    return [&host, rest, path, test, keep, pull = iterate(value)]() -> std::optional<Value> {
      while (auto item = pull()) {
        host.spend(1);
        const Value subject = along(host, *item, path);
        if ((test ? apply_test(host, *test, subject, rest) : truth(subject)) == keep) return item;
      }
      return std::nullopt;
    };
  });
}

Value batch(const Call& c) {
  const auto a = c.bind({"linecount", "fill_with"}, 1);
  return lazily(c.value, [a](const Value& value) -> Next {
    List lines, line;
    for (const Value& item : to_list(value)) {
      if (equal(static_cast<int64_t>(line.size()), *a[0])) {
        lines.push_back(line);
        line.clear();
      }
      line.push_back(item);
    }
    if (!line.empty()) {
      if (given(a[1])) {
        const int64_t count = integer_argument(*a[0]);
        if (count > 1'000'000) throw Error(Fault::limit, "too long a line of 'batch'");
        while (static_cast<int64_t>(line.size()) < count) line.push_back(*a[1]);
      }
      lines.push_back(line);
    }
    return iterate(lines);
  });
}

Value slice_filter(const Call& c) {
  const auto a = c.bind({"slices", "fill_with"}, 1);
  return lazily(c.value, [a](const Value& value) -> Next {
    const List items = to_list(value);
    const int64_t slices = integer_argument(*a[0]), size = static_cast<int64_t>(items.size());
    if (slices == 0) fail("integer division or modulo by zero");
    if (slices > 1'000'000) throw Error(Fault::limit, "too many slices");
    List out;
    int64_t offset = 0;
    for (int64_t n = 0; n < slices; ++n) {
      const int64_t start = offset + n * (size / slices);
      if (n < size % slices) ++offset;
      List part(items.begin() + start, items.begin() + offset + (n + 1) * (size / slices));
      if (given(a[1]) && n >= size % slices) part.push_back(*a[1]);
      out.push_back(std::move(part));
    }
    return iterate(out);
  });
}

// ---- any value ----

Value default_filter(const Call& c) {
  const auto a = c.bind({"default_value", "boolean"});
  if (c.value.is(Type::undefined) || (flag(a[1]) && !truth(c.value))) return a[0].value_or("");
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
    if (!found.is(Type::function) || found.function().name != name) return undefined("'dict object' has no attribute " + repr(name));
  }
  return found;
}

using Filter = Value (*)(const Call&);
const std::map<std::string_view, Filter>& table() {
  static const std::map<std::string_view, Filter> kFilters = {
      {"abs", absolute},
      {"attr", attr_filter},
      {"batch", batch},
      {"capitalize", [](const Call& c) -> Value { return c.bind({}), capitalize(soft(c.value)); }},
      {"center", center},
      {"count", size_filter},
      {"d", default_filter},
      {"default", default_filter},
      {"dictsort", dict_sort},
      {"first", first_filter},
      {"float", to_float},
      {"format", format_filter},
      {"indent", indent},
      {"int", to_int},
      {"items", items_filter},
      {"join", join_filter},
      {"last", last_filter},
      {"length", size_filter},
      {"list", list_filter},
      {"lower", [](const Call& c) -> Value { return c.bind({}), lower(soft(c.value)); }},
      {"map", map_filter},
      {"max", [](const Call& c) { return extreme(c, true); }},
      {"min", [](const Call& c) { return extreme(c, false); }},
      {"reject", [](const Call& c) { return choose(c, false, false); }},
      {"rejectattr", [](const Call& c) { return choose(c, false, true); }},
      {"replace", replace_filter},
      {"reverse", reverse_filter},
      {"round", round_filter},
      {"safe", safe_filter},
      {"select", [](const Call& c) { return choose(c, true, false); }},
      {"selectattr", [](const Call& c) { return choose(c, true, true); }},
      {"slice", slice_filter},
      {"sort", sort_filter},
      {"string", [](const Call& c) -> Value { return c.bind({}), c.value.is(Type::text) ? c.value : Value(to_text(c.value)); }},
      {"sum", sum_filter},
      {"title", [](const Call& c) -> Value { return c.bind({}), title_of_words(soft(c.value)); }},
      {"tojson", to_json_filter},
      {"trim", trim},
      {"truncate", truncate},
      {"unique", unique_filter},
      {"upper", [](const Call& c) -> Value { return c.bind({}), upper(soft(c.value)); }},
      {"urlencode", url_encode},
      {"wordcount", word_count},
  };
  return kFilters;
}

// What Jinja has and this engine does not: HTML, chance, and what no chat template was seen to use.
constexpr std::string_view kLacking[] = {"e",      "escape", "filesizeformat", "forceescape", "groupby", "pprint",
                                         "random", "striptags", "urlize", "wordwrap", "xmlattr"};

}  // namespace

Standing filter_standing(std::string_view name) {
  if (table().count(name)) return Standing::known;
  return std::find(std::begin(kLacking), std::end(kLacking), name) != std::end(kLacking) ? Standing::lacking : Standing::unknown;
}

Value apply_filter(Host& host, std::string_view name, const Value& value, const Arguments& arguments) {
  const auto at = table().find(name);
  if (at == table().end()) {
    if (filter_standing(name) == Standing::lacking) unsupported(fmt::format("the filter '{}'", name));
    fail(fmt::format("No filter named {}.", repr(name)));
  }
  if (value.is(Type::text)) host.spend(static_cast<int64_t>(value.text().size() / 32));
  return at->second(Call{host, value, arguments, at->first.data()});
}

}  // namespace cairn::jinja
