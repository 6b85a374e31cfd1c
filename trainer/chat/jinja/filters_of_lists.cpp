// Filters of lists and dicts. Those that jinja2 writes as generators begin when they are first asked.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/chat/jinja/filters.h"
#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

using Call = FilterCall;
using Next = std::function<std::optional<Value>()>;

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
  if (value.is(Type::iterator) || value.is(Type::loop))
    fail(fmt::format("'{}' object is not reversible", type_name(value)));
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
      key.push_back(is_set(a[1]) ? part : lowered(part));
    }
    keys.push_back(std::move(key));
  }
  sort_by(items, keys, is_set(a[0]));
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
    keys.push_back(is_set(a[0]) ? part : lowered(part));
  }
  c.host.spend(static_cast<int64_t>(items.size()) * 16);
  sort_by(items, keys, is_set(a[2]));
  return items;
}

Value unique_filter(const Call& c) {
  const auto a = c.bind({"case_sensitive", "attribute"});
  const auto path = given(a[1]) ? path_of(*a[1]) : std::vector<Value>();
  return lazily(c.value, [&host = c.host, path, exact = is_set(a[0])](const Value& value) -> Next {
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
    if (!is_set(a[0])) key = lowered(key);
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

}  // namespace

const FilterTable& filters_of_lists() {
  static const FilterTable kFilters = {
      {"batch", batch},
      {"count", size_filter},
      {"dictsort", dict_sort},
      {"first", first_filter},
      {"items", items_filter},
      {"join", join_filter},
      {"last", last_filter},
      {"length", size_filter},
      {"list", list_filter},
      {"map", map_filter},
      {"max", [](const Call& c) { return extreme(c, true); }},
      {"min", [](const Call& c) { return extreme(c, false); }},
      {"reject", [](const Call& c) { return choose(c, false, false); }},
      {"rejectattr", [](const Call& c) { return choose(c, false, true); }},
      {"reverse", reverse_filter},
      {"select", [](const Call& c) { return choose(c, true, false); }},
      {"selectattr", [](const Call& c) { return choose(c, true, true); }},
      {"slice", slice_filter},
      {"sort", sort_filter},
      {"sum", sum_filter},
      {"unique", unique_filter},
  };
  return kFilters;
}

}  // namespace cairn::jinja
