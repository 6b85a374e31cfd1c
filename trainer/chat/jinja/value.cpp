#include "trainer/chat/jinja/value.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "trainer/chat/jinja/text.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

constexpr int kDeepest = 200;  // lists in lists, and comparing or printing them

bool is_number(const Value& v) { return v.is(Type::boolean) || v.is(Type::integer) || v.is(Type::real); }
int64_t whole(const Value& v) { return v.is(Type::boolean) ? v.boolean() : v.integer(); }

// -1, 0, 1; 2: one of them is NaN. An integer and a float are compared by their exact values.
int compare_numbers(const Value& a, const Value& b) {
  const auto order = [](auto x, auto y) { return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2; };
  if (!a.is(Type::real) && !b.is(Type::real)) return order(whole(a), whole(b));
  if (a.is(Type::real) && b.is(Type::real)) return order(a.real(), b.real());
  if (a.is(Type::real)) {
    const int turned = compare_numbers(b, a);
    return turned == 2 ? 2 : -turned;
  }
  return order(static_cast<long double>(whole(a)), static_cast<long double>(b.real()));  // 64 bits of mantissa
}

bool equal(const Value& a, const Value& b, int depth);

bool equal_items(const List& a, const List& b, int depth) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!equal(a[i], b[i], depth)) return false;
  return true;
}

bool equal(const Value& a, const Value& b, int depth) {
  if (depth > kDeepest) throw Error(Fault::limit, "values nest too deeply");
  if (is_number(a) && is_number(b)) return compare_numbers(a, b) == 0;
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::undefined:
    case Type::none:
      return true;
    case Type::text:
      return a.text() == b.text();
    case Type::list:
    case Type::tuple:
      return equal_items(a.items(), b.items(), depth + 1);
    case Type::dict: {
      if (a.dict().entries.size() != b.dict().entries.size()) return false;
      for (const auto& [key, value] : a.dict().entries) {
        const Value* other = b.dict().find(key);
        if (!other || !equal(value, *other, depth + 1)) return false;
      }
      return true;
    }
    case Type::range: {
      const Range &x = a.range(), &y = b.range();
      if (x.size() != y.size()) return false;
      return x.size() == 0 || (x.start == y.start && (x.size() == 1 || x.step == y.step));
    }
    case Type::view:
      unsupported("comparing views of a dict");
    default:
      return a.identity() == b.identity();
  }
}

std::string repr_at(const Value& value, int depth);

std::string joined(const List& items, const char* open, const char* close, int depth) {
  std::string out = open;
  for (size_t i = 0; i < items.size(); ++i) out += (i ? ", " : "") + repr_at(items[i], depth);
  return out + close;
}

std::string repr_of(const Dict& dict, int depth) {
  std::string out = "{";
  for (const auto& [key, value] : dict.entries)
    out += (out.size() > 1 ? ", " : "") + repr_at(key, depth) + ": " + repr_at(value, depth);
  return out + "}";
}

std::string repr_at(const Value& value, int depth) {
  if (depth > kDeepest) throw Error(Fault::limit, "values nest too deeply");
  switch (value.type()) {
    case Type::undefined:
      return "Undefined";
    case Type::none:
      return "None";
    case Type::boolean:
      return value.boolean() ? "True" : "False";
    case Type::integer:
      return std::to_string(value.integer());
    case Type::real:
      return repr(value.real());
    case Type::text:
      return value.safe() ? "Markup(" + repr(value.text()) + ")" : repr(value.text());
    case Type::list:
      return joined(value.items(), "[", "]", depth + 1);
    case Type::tuple:
      return joined(value.items(), "(", value.items().size() == 1 ? ",)" : ")", depth + 1);
    case Type::dict:
      return repr_of(value.dict(), depth + 1);
    case Type::view: {
      static constexpr const char* kNames[] = {"dict_keys([", "dict_values([", "dict_items(["};
      return joined(to_list(value), kNames[value.view().part], "])", depth + 1);
    }
    case Type::range: {
      const Range& r = value.range();
      return r.step == 1 ? fmt::format("range({}, {})", r.start, r.stop)
                         : fmt::format("range({}, {}, {})", r.start, r.stop, r.step);
    }
    case Type::space:
      return "<Namespace " + repr_of(value.space().attributes, depth + 1) + ">";
    case Type::function:
      if (!value.function().text.empty()) return value.function().text;
      unsupported("printing the function '" + value.function().name + "'");
    case Type::iterator:
      unsupported("printing a generator (the filter 'list' makes a list of it)");
    case Type::loop:
      return fmt::format("<LoopContext {}/{}>", value.loop().index0 + 1, to_text(value.loop().get("length")));
  }
  return "";
}

}  // namespace

int64_t Range::size() const {
  if (step > 0) return start < stop ? (stop - start - 1) / step + 1 : 0;
  return start > stop ? (start - stop - 1) / -step + 1 : 0;
}

const Value* Dict::find(const Value& key) const {
  for (const auto& [k, v] : entries)
    if (jinja::equal(k, key)) return &v;
  return nullptr;
}

void Dict::set(const Value& key, const Value& value) {
  for (auto& [k, v] : entries) {
    if (jinja::equal(k, key)) {
      v = value;
      return;
    }
  }
  entries.emplace_back(key, value);
}

const void* Value::identity() const {
  return std::visit(
      [](const auto& held) -> const void* {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, Tuple>) {
          return held.items.get();
        } else if constexpr (std::is_same_v<T, Text>) {
          return held.bytes.get();
        } else if constexpr (requires { held.get(); }) {
          return held.get();
        } else {
          return nullptr;
        }
      },
      data_);
}

Value tuple(List items) { return Tuple{std::make_shared<const List>(std::move(items))}; }
Value undefined(std::string message) { return Undefined{std::make_shared<const std::string>(std::move(message))}; }
Value generator(std::function<std::optional<Value>()> next) {
  return std::make_shared<Iterator>(Iterator{std::move(next)});
}
void fail_undefined(const Value& value) { fail(*value.undefined().message); }

Value from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::json::value_t::null:
      return nullptr;
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        unsupported(fmt::format("the integer {} beyond 64 bits", json.get<uint64_t>()));
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_float:
      // An integer too large for 64 bits is read as a float: which one it was is not known.
      if (std::abs(json.get<double>()) >= 0x1p63) unsupported(fmt::format("the number {} beyond 64 bits", json.get<double>()));
      return json.get<double>();
    case nlohmann::json::value_t::string: {
      const std::string& text = json.get_ref<const std::string&>();
      if (data::valid_utf8_prefix(text) != text.size()) fail("a text of the conversation is not valid UTF-8");
      return text;
    }
    case nlohmann::json::value_t::array: {
      List items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item));
      return items;
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      for (const auto& [key, value] : json.items()) dict.entries.emplace_back(from_json(key), from_json(value));
      return dict;
    }
    default:
      fail("binary JSON in a conversation");
  }
}

const char* type_name(const Value& value) {
  static constexpr const char* kNames[] = {"Undefined", "NoneType", "bool", "int", "float", "str", "list", "tuple",
                                           "dict", "dict_items", "range", "generator", "Namespace", "function",
                                           "LoopContext"};
  return value.safe() ? "Markup" : kNames[static_cast<int>(value.type())];
}

bool truth(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
    case Type::none:
      return false;
    case Type::boolean:
      return value.boolean();
    case Type::integer:
      return value.integer() != 0;
    case Type::real:
      return value.real() != 0;
    case Type::text:
      return !value.text().empty();
    default: {
      const auto size = size_of(value);
      return !size || *size != 0;
    }
  }
}

bool equal(const Value& a, const Value& b) { return equal(a, b, 0); }

bool less(const Value& a, const Value& b) {
  if (a.is(Type::undefined)) fail_undefined(a);
  if (b.is(Type::undefined)) fail_undefined(b);
  if (is_number(a) && is_number(b)) return compare_numbers(a, b) == -1;
  if (a.is(Type::text) && b.is(Type::text)) return a.text() < b.text();  // UTF-8 sorts as its code points do
  if (a.type() == b.type() && (a.is(Type::list) || a.is(Type::tuple))) {
    const List &x = a.items(), &y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i])) return less(x[i], y[i]);
    return x.size() < y.size();
  }
  if (a.is(Type::view) || b.is(Type::view)) unsupported("comparing views of a dict");
  fail(fmt::format("'<' not supported between instances of '{}' and '{}'", type_name(a), type_name(b)));
}

bool is_hashable(const Value& value) {
  if (value.is(Type::list) || value.is(Type::dict) || value.is(Type::view)) return false;
  if (value.is(Type::tuple))
    for (const Value& item : value.items())
      if (!is_hashable(item)) return false;
  return true;
}

bool contains(const Value& container, const Value& item) {
  switch (container.type()) {
    case Type::text:
      if (item.is(Type::undefined)) fail("'in <string>' requires string as left operand, not Undefined");
      if (!item.is(Type::text))
        fail(fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
      return container.text().find(item.text()) != std::string::npos;
    case Type::dict:
      if (!is_hashable(item)) fail(fmt::format("unhashable type: '{}'", type_name(item)));
      return container.dict().find(item) != nullptr;
    case Type::none:
    case Type::boolean:
    case Type::integer:
    case Type::real:
    case Type::space:
    case Type::function:
      fail(fmt::format("argument of type '{}' is not iterable", type_name(container)));
    default: {
      const auto next = iterate(container);
      while (const auto found = next())
        if (equal(*found, item)) return true;
      return false;
    }
  }
}

std::string to_text(const Value& value) {
  if (value.is(Type::text)) return value.text();
  if (value.is(Type::undefined)) return "";
  return repr_at(value, 0);
}

std::string to_repr(const Value& value) { return repr_at(value, 0); }

std::optional<int64_t> size_of(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
      return 0;
    case Type::text:
      return length(value.text());
    case Type::list:
    case Type::tuple:
      return static_cast<int64_t>(value.items().size());
    case Type::dict:
      return static_cast<int64_t>(value.dict().entries.size());
    case Type::view:
      return static_cast<int64_t>(value.view().dict->entries.size());
    case Type::range:
      return value.range().size();
    case Type::loop:
      return value.loop().get("length").integer();
    default:
      return std::nullopt;
  }
}

bool is_iterable(const Value& value) {
  return size_of(value).has_value() || value.is(Type::iterator);
}

std::function<std::optional<Value>()> iterate(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
      return [] { return std::optional<Value>(); };
    case Type::text:
      return [value, at = size_t{0}]() mutable -> std::optional<Value> {
        const std::string& text = value.text();
        if (at >= text.size()) return std::nullopt;
        const size_t bytes = data::utf8_length(static_cast<unsigned char>(text[at]));
        at += bytes;
        return Value(std::string_view(text).substr(at - bytes, bytes));
      };
    case Type::list:
    case Type::tuple:
      return [value, at = size_t{0}]() mutable -> std::optional<Value> {
        if (at >= value.items().size()) return std::nullopt;
        return value.items()[at++];
      };
    case Type::dict:
      return iterate(View{View::keys, value.shared_dict()});
    case Type::view:
      return [value, at = size_t{0}]() mutable -> std::optional<Value> {
        const View& view = value.view();
        if (at >= view.dict->entries.size()) return std::nullopt;
        const auto& [key, held] = view.dict->entries[at++];
        if (view.part == View::items) return tuple({key, held});
        return view.part == View::keys ? key : held;
      };
    case Type::range:
      return [range = value.range(), at = int64_t{0}]() mutable -> std::optional<Value> {
        if (at >= range.size()) return std::nullopt;
        return Value(range.at(at++));
      };
    case Type::iterator:
      return [value] { return value.iterator().next(); };
    case Type::loop:
      unsupported("iterating over 'loop'");
    default:
      fail(fmt::format("'{}' object is not iterable", type_name(value)));
  }
}

List to_list(const Value& value) {
  List items;
  const auto next = iterate(value);
  while (auto item = next()) items.push_back(std::move(*item));
  return items;
}

}  // namespace cairn::jinja
