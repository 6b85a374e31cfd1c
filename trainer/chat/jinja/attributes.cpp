// value.name, value[key], value[a:b:c], and the methods of texts, lists and dicts, as Python has them in jinja2's
// immutable sandbox: what would change a value is undefined, and so is what begins with an underscore.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/format.h"
#include "trainer/chat/jinja/text.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

using Given = std::vector<std::optional<Value>>;

std::optional<std::string_view> text_or_none(const std::optional<Value>& value) {
  if (!value || value->is(Type::none)) return std::nullopt;
  return text_argument(*value);
}
int64_t integer_or(const std::optional<Value>& value, int64_t fallback) {
  return value ? integer_argument(*value) : fallback;
}

List values_of(const std::vector<std::string_view>& parts) { return List(parts.begin(), parts.end()); }

// Start and stop of a part of SIZE items, as Python's slices and searches clip them.
std::pair<int64_t, int64_t> clipped(const std::optional<Value>& start, const std::optional<Value>& stop, int64_t size) {
  const auto clip = [&](const std::optional<Value>& value, int64_t fallback) {
    if (!value || value->is(Type::none)) return fallback;
    const int64_t at = integer_argument(*value);
    return std::clamp<int64_t>(at < 0 ? at + size : at, 0, std::numeric_limits<int64_t>::max());
  };
  return {clip(start, 0), std::min(clip(stop, size), size)};
}

std::string_view part(std::string_view text, int64_t start, int64_t stop) {
  const size_t from = offset_of(text, start);
  return text.substr(from, offset_of(text.substr(from), stop - start));
}

// ---- methods of texts ----

struct Call {
  const std::string& self;
  const Given& given;
  const char* name;
};

Value strip_method(const Call& c, Side side) { return strip(c.self, text_or_none(c.given[0]), side); }

Value split_method(const Call& c, bool from_right) {
  const auto separator = text_or_none(c.given[0]);
  if (separator && separator->empty()) fail("empty separator");
  return values_of(split(c.self, separator, integer_or(c.given[1], -1), from_right));
}

// str.startswith and str.endswith: a text or a tuple of texts, in a part of the text.
Value affix_method(const Call& c, bool at_end) {
  const int64_t size = length(c.self);
  const auto [start, stop] = clipped(c.given[1], c.given[2], size);
  const auto fits = [&, start = start, stop = stop](const Value& value) {
    const std::string& affix = text_argument(value);
    if (start > size || stop < start) return false;
    const std::string_view text = part(c.self, start, stop);
    return at_end ? text.ends_with(affix) : text.starts_with(affix);
  };
  if (!c.given[0]->is(Type::tuple)) return fits(*c.given[0]);
  return std::any_of(c.given[0]->items().begin(), c.given[0]->items().end(), fits);
}

Value find_method(const Call& c, bool last, bool must) {
  const std::string& wanted = text_argument(*c.given[0]);
  const int64_t size = length(c.self);
  const auto [start, stop] = clipped(c.given[1], c.given[2], size);
  int64_t found = -1;
  if (start <= size && start <= stop) {
    const std::string_view text = part(c.self, start, stop);
    const size_t at = last ? text.rfind(wanted) : text.find(wanted);
    if (at != std::string_view::npos) found = start + length(text.substr(0, at));
  }
  if (found < 0 && must) fail("substring not found");
  return found;
}

Value count_method(const Call& c) {
  const std::string& wanted = text_argument(*c.given[0]);
  const int64_t size = length(c.self);
  const auto [start, stop] = clipped(c.given[1], c.given[2], size);
  return start <= size && start <= stop ? count_of(part(c.self, start, stop), wanted) : int64_t{0};
}

Value partition_method(const Call& c, bool last) {
  const std::string& separator = text_argument(*c.given[0]);
  if (separator.empty()) fail("empty separator");
  const size_t at = last ? c.self.rfind(separator) : c.self.find(separator);
  if (at == std::string::npos) return last ? tuple({"", "", c.self}) : tuple({c.self, "", ""});
  return tuple({c.self.substr(0, at), separator, c.self.substr(at + separator.size())});
}

Value join_method(const Call& c) {
  std::string out;
  size_t index = 0;
  for (const Value& item : to_list(*c.given[0])) {
    if (!item.is(Type::text)) fail(fmt::format("sequence item {}: expected str instance, {} found", index, type_name(item)));
    if (index++) out += c.self;
    out += text_argument(item);
    if (out.size() > size_t{256} << 20) throw Error(Fault::limit, "a text of more than 256 MiB");
  }
  return out;
}

// How many characters go before and after SELF to make it as wide as asked for.
Value pad_method(const Call& c, int where) {
  const int64_t width = integer_argument(*c.given[0]), has = length(c.self);
  const std::string fill = c.given[1] ? text_argument(*c.given[1]) : " ";
  if (length(fill) != 1) fail("The fill character must be exactly one character long");
  if (width > 1'000'000) throw Error(Fault::limit, "too wide a text");
  const int64_t space = std::max<int64_t>(width - has, 0);
  const int64_t before = where < 0 ? 0 : where > 0 ? space : space / 2 + (space & width & 1);
  std::string out;
  for (int64_t i = 0; i < before; ++i) out += fill;
  out += c.self;
  for (int64_t i = before; i < space; ++i) out += fill;
  return out;
}

Value zfill_method(const Call& c) {
  const int64_t width = integer_argument(*c.given[0]), space = width - length(c.self);
  if (width > 1'000'000) throw Error(Fault::limit, "too wide a text");
  if (space <= 0) return c.self;
  const bool has_sign = !c.self.empty() && (c.self[0] == '-' || c.self[0] == '+');
  return c.self.substr(0, has_sign) + std::string(space, '0') + c.self.substr(has_sign);
}

Value remove_affix(const Call& c, bool at_end) {
  const std::string& affix = text_argument(*c.given[0]);
  if (at_end ? !c.self.ends_with(affix) : !c.self.starts_with(affix)) return c.self;
  return at_end ? c.self.substr(0, c.self.size() - affix.size()) : c.self.substr(affix.size());
}

// Parameters in a row; "" is one that takes no keyword. The first `required` must be given.
struct Method {
  const char* name;
  std::vector<const char*> parameters;
  size_t required;
  Value (*run)(const Call&);
};

const std::vector<Method>& text_methods() {
  static const std::vector<Method> kMethods = {
      {"strip", {""}, 0, [](const Call& c) { return strip_method(c, Side::both); }},
      {"lstrip", {""}, 0, [](const Call& c) { return strip_method(c, Side::left); }},
      {"rstrip", {""}, 0, [](const Call& c) { return strip_method(c, Side::right); }},
      {"split", {"sep", "maxsplit"}, 0, [](const Call& c) { return split_method(c, false); }},
      {"rsplit", {"sep", "maxsplit"}, 0, [](const Call& c) { return split_method(c, true); }},
      {"splitlines", {"keepends"}, 0,
       [](const Call& c) -> Value { return values_of(split_lines(c.self, c.given[0] && truth(*c.given[0]))); }},
      {"startswith", {"", "", ""}, 1, [](const Call& c) { return affix_method(c, false); }},
      {"endswith", {"", "", ""}, 1, [](const Call& c) { return affix_method(c, true); }},
      {"replace", {"", "", ""}, 2,
       [](const Call& c) -> Value {
         return replace(c.self, text_argument(*c.given[0]), text_argument(*c.given[1]), integer_or(c.given[2], -1));
       }},
      {"upper", {}, 0, [](const Call& c) -> Value { return upper(c.self); }},
      {"lower", {}, 0, [](const Call& c) -> Value { return lower(c.self); }},
      {"capitalize", {}, 0, [](const Call& c) -> Value { return capitalize(c.self); }},
      {"title", {}, 0, [](const Call& c) -> Value { return title(c.self); }},
      {"find", {"", "", ""}, 1, [](const Call& c) { return find_method(c, false, false); }},
      {"rfind", {"", "", ""}, 1, [](const Call& c) { return find_method(c, true, false); }},
      {"index", {"", "", ""}, 1, [](const Call& c) { return find_method(c, false, true); }},
      {"rindex", {"", "", ""}, 1, [](const Call& c) { return find_method(c, true, true); }},
      {"count", {"", "", ""}, 1, count_method},
      {"join", {""}, 1, join_method},
      {"partition", {""}, 1, [](const Call& c) { return partition_method(c, false); }},
      {"rpartition", {""}, 1, [](const Call& c) { return partition_method(c, true); }},
      {"removeprefix", {""}, 1, [](const Call& c) { return remove_affix(c, false); }},
      {"removesuffix", {""}, 1, [](const Call& c) { return remove_affix(c, true); }},
      {"ljust", {"", ""}, 1, [](const Call& c) { return pad_method(c, -1); }},
      {"rjust", {"", ""}, 1, [](const Call& c) { return pad_method(c, 1); }},
      {"center", {"", ""}, 1, [](const Call& c) { return pad_method(c, 0); }},
      {"zfill", {""}, 1, zfill_method},
      {"isalpha", {}, 0, [](const Call& c) -> Value { return is_alpha(c.self); }},
      {"isdigit", {}, 0, [](const Call& c) -> Value { return is_digit(c.self); }},
      {"isalnum", {}, 0, [](const Call& c) -> Value { return is_alnum(c.self); }},
      {"isspace", {}, 0, [](const Call& c) -> Value { return is_all_space(c.self); }},
      {"isupper", {}, 0, [](const Call& c) -> Value { return is_upper(c.self); }},
      {"islower", {}, 0, [](const Call& c) -> Value { return is_lower(c.self); }},
      {"isascii", {}, 0, [](const Call& c) -> Value { return data::is_ascii(c.self); }},
  };
  return kMethods;
}

// What Python has and this engine lacks: refused where a template names it.
struct Lacking {
  Type type;
  std::vector<std::string_view> names;
};
const std::vector<Lacking>& lacking() {
  static const std::vector<Lacking> kLacking = {
      {Type::text, {"casefold", "encode", "expandtabs", "format_map", "isdecimal", "isidentifier", "isnumeric",
                    "isprintable", "istitle", "maketrans", "swapcase", "translate"}},
      {Type::dict, {"fromkeys"}},
      {Type::integer, {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag",
                       "is_integer", "numerator", "real", "to_bytes"}},
      {Type::boolean, {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag",
                       "is_integer", "numerator", "real", "to_bytes"}},
      {Type::real, {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"}},
      {Type::range, {"count", "index", "start", "step", "stop"}},
      {Type::view, {"isdisjoint", "mapping"}},
      {Type::iterator, {"close", "gi_code", "gi_frame", "gi_running", "gi_suspended", "gi_yieldfrom", "send", "throw"}},
      {Type::function, {"arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller", "fromkeys", "mro", "name"}},
  };
  return kLacking;
}

Value function(std::string name, std::function<Value(const Arguments&)> call) {
  return std::make_shared<const Function>(Function{std::move(name), "", std::move(call)});
}

// What type(obj).__name__ and the module give in messages about what is not there.
std::string object_name(const Value& value) {
  switch (value.type()) {
    case Type::none:
      return "None";
    case Type::space:
      return "transformers.utils.chat_template_utils._cached_compile_jinja_template.<locals>.TemplateNamespace object";
    case Type::loop:
      return "jinja2.runtime.LoopContext object";
    default:
      return fmt::format("{} object", type_name(value));
  }
}

Value nothing(const Value& of, const Value& key) {
  if (key.is(Type::text))
    return undefined(fmt::format("{} has no attribute {}", repr(object_name(of)), to_repr(key)));
  return undefined(fmt::format("{} has no element {}", object_name(of), to_repr(key)));
}

Value unsafe(const Value& of, const std::string& name) {
  return undefined(fmt::format("access to attribute {} of {} object is unsafe.", repr(name), repr(type_name(of))));
}

Value from_list(const Value& of, const std::string& name) {
  if (name == "count")
    return function(name, [of](const Arguments& a) -> Value {
      const auto given = bind("count", a, {""}, 1);
      return static_cast<int64_t>(std::count_if(of.items().begin(), of.items().end(),
                                                [&](const Value& item) { return equal(item, *given[0]); }));
    });
  if (name == "index")
    return function(name, [of](const Arguments& a) -> Value {
      const auto given = bind("index", a, {"", "", ""}, 1);
      const auto [start, stop] = clipped(given[1], given[2], static_cast<int64_t>(of.items().size()));
      for (int64_t i = start; i < stop; ++i)
        if (equal(of.items()[i], *given[0])) return i;
      fail(fmt::format("{} is not in list", to_repr(*given[0])));
    });
  if (name == "copy" && of.is(Type::list))
    return function(name, [of](const Arguments& a) {
      bind("copy", a, {}, 0);
      return of;
    });
  return {};
}

Value from_dict(const Value& of, const std::string& name) {
  const auto view = [&](View::Part part) {
    return function(name, [of, part, name](const Arguments& a) -> Value {
      bind(name.c_str(), a, {}, 0);
      return View{part, of.shared_dict()};
    });
  };
  if (name == "items") return view(View::items);
  if (name == "keys") return view(View::keys);
  if (name == "values") return view(View::values);
  if (name == "copy")
    return function(name, [of](const Arguments& a) {
      bind("copy", a, {}, 0);
      return of;
    });
  if (name == "get")
    return function(name, [of](const Arguments& a) -> Value {
      const auto given = bind("get", a, {"", ""}, 1);
      if (!is_hashable(*given[0])) fail(fmt::format("unhashable type: '{}'", type_name(*given[0])));
      const Value* found = of.dict().find(*given[0]);
      return found ? *found : given[1] ? *given[1] : Value(nullptr);
    });
  return {};
}

Value from_loop(const Value& of, const std::string& name) {
  if (name == "cycle")
    return function(name, [of](const Arguments& a) -> Value {
      if (!a.named.empty()) fail("cycle() got an unexpected keyword argument");
      if (a.positional.empty()) fail("no items for cycling given");
      return a.positional[of.loop().index0 % a.positional.size()];
    });
  if (name == "changed")
    return function(name, [of](const Arguments& a) -> Value {
      if (!a.named.empty()) fail("changed() got an unexpected keyword argument");
      const Value now = tuple(a.positional);
      if (of.loop().changed && equal(*of.loop().changed, now)) return false;
      of.loop().changed = std::make_shared<Value>(now);
      return true;
    });
  return of.loop().get(name);
}

// getattr(); nothing where there is no such attribute.
std::optional<Value> python_attribute(Host& host, const Value& of, const std::string& name) {
  if (of.safe()) unsupported(fmt::format("'.{}' of a text marked safe", name));
  for (const Lacking& entry : lacking())
    if (entry.type == of.type() && std::find(entry.names.begin(), entry.names.end(), name) != entry.names.end()) {
      if (of.is(Type::function) && of.function().text.empty() && name != "fromkeys" && name != "mro") break;
      unsupported(fmt::format("the attribute '{}' of '{}'", name, type_name(of)));
    }
  static constexpr std::string_view kListChanges[] = {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"};
  static constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};
  const auto among = [&](const auto& names) { return std::find(std::begin(names), std::end(names), name) != std::end(names); };
  Value found;
  switch (of.type()) {
    case Type::text:
      if (name == "format")
        return function(name, [of, &host](const Arguments& a) -> Value { return brace_format(host, of.text(), a); });
      for (const Method& method : text_methods()) {
        if (name != method.name) continue;
        return function(name, [of, &method, &host](const Arguments& a) {
          host.spend(static_cast<int64_t>(of.text().size() / 32));
          const Given given = bind(method.name, a, method.parameters, method.required);
          Value result = method.run(Call{of.text(), given, method.name});
          if (result.is(Type::list)) host.spend(static_cast<int64_t>(result.items().size()));
          return result;
        });
      }
      return std::nullopt;
    case Type::list:
      if (among(kListChanges)) return unsafe(of, name);
      [[fallthrough]];
    case Type::tuple:
      found = from_list(of, name);
      break;
    case Type::dict:
      if (among(kDictChanges)) return unsafe(of, name);
      found = from_dict(of, name);
      break;
    case Type::loop:
      return name.starts_with("_") ? unsafe(of, name) : from_loop(of, name);
    case Type::space:
      if (const Value* held = of.space().attributes.find(name)) return *held;
      break;
    default:
      break;
  }
  if (!found.is(Type::none)) return found;
  if (name.starts_with("__") && name.ends_with("__")) return unsafe(of, name);
  return std::nullopt;
}

// obj[key]; nothing where Python raises TypeError or LookupError.
std::optional<Value> python_item(const Value& of, const Value& key) {
  const auto index = [&](int64_t size) -> std::optional<int64_t> {
    if (!key.is(Type::integer) && !key.is(Type::boolean)) return std::nullopt;
    int64_t at = integer_argument(key);
    if (at < 0) at += size;
    return at >= 0 && at < size ? std::optional(at) : std::nullopt;
  };
  switch (of.type()) {
    case Type::text: {
      const auto at = index(length(of.text()));
      if (!at) return std::nullopt;
      if (of.safe()) unsupported("a part of a text marked safe");
      return Value(part(of.text(), *at, *at + 1));
    }
    case Type::list:
    case Type::tuple: {
      const auto at = index(static_cast<int64_t>(of.items().size()));
      return at ? std::optional(of.items()[*at]) : std::nullopt;
    }
    case Type::range: {
      const auto at = index(of.range().size());
      return at ? std::optional(Value(of.range().at(*at))) : std::nullopt;
    }
    case Type::dict: {
      const Value* found = is_hashable(key) ? of.dict().find(key) : nullptr;
      return found ? std::optional(*found) : std::nullopt;
    }
    default:
      return std::nullopt;
  }
}

}  // namespace

Value attribute_of(Host& host, const Value& value, const std::string& name) {
  if (value.is(Type::undefined)) fail_undefined(value);
  if (auto found = python_attribute(host, value, name)) return *found;
  if (auto found = python_item(value, name)) return *found;
  return nothing(value, name);
}

Value item_of(Host& host, const Value& value, const Value& key) {
  if (value.is(Type::undefined)) fail_undefined(value);
  if (auto found = python_item(value, key)) return *found;
  if (key.is(Type::text))
    if (auto found = python_attribute(host, value, key.text())) return *found;
  return nothing(value, key);
}

Value slice_of(Host& host, const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (value.is(Type::undefined)) fail_undefined(value);
  if (!value.is(Type::text) && !value.is(Type::list) && !value.is(Type::tuple) && !value.is(Type::range))
    unsupported(fmt::format("a slice of '{}'", type_name(value)));  // NOTE: Jinja fails, or not where it is a constant
  if (value.safe()) unsupported("a part of a text marked safe");
  const int64_t size = *size_of(value);
  const int64_t by = step.is(Type::none) ? 1 : integer_argument(step);
  if (by == 0) fail("slice step cannot be zero");
  const auto bound = [&](const Value& v, int64_t fallback) {
    if (v.is(Type::none)) return fallback;
    int64_t at = integer_argument(v);
    if (at < 0) at += size;
    return std::clamp<int64_t>(at, by < 0 ? -1 : 0, by < 0 ? size - 1 : size);
  };
  const int64_t from = bound(start, by < 0 ? size - 1 : 0), to = bound(stop, by < 0 ? -1 : size);
  const int64_t count = Range{from, to, std::clamp<int64_t>(by, -size - 1, size + 1)}.size();
  host.spend(count / (value.is(Type::text) ? 32 : 1));
  if (value.is(Type::range)) {
    const Range& r = value.range();
    return Range{r.start + from * r.step, r.start + to * r.step, r.step * by};
  }
  if (value.is(Type::text)) {
    const std::string& text = value.text();
    if (by == 1) return count > 0 ? part(text, from, to) : std::string_view();
    const auto chars = characters(text);
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += chars[from + i * by];
    return out;
  }
  List items;
  for (int64_t i = 0; i < count; ++i) items.push_back(value.items()[from + i * by]);
  return value.is(Type::tuple) ? tuple(std::move(items)) : Value(std::move(items));
}

}  // namespace cairn::jinja
