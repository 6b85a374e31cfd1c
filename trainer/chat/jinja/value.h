// What a template's expressions give: Python's None, bool, int (64 bits), float, str, list, tuple, dict, and the few
// objects that Jinja adds. Values share what they hold; a template can change nothing but a namespace.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "trainer/chat/jinja/error.h"

namespace cairn::jinja {

class Value;
using List = std::vector<Value>;

// Printed as nothing; any other use raises `message`.
struct Undefined {
  std::shared_ptr<const std::string> message;
};
struct None {};
struct Text {
  std::shared_ptr<const std::string> bytes;
  bool safe = false;  // went through the filter `safe`
};
struct Tuple {
  std::shared_ptr<const List> items;
};
// Entries in the order of insertion; keys are equal as Python has it (1 == True == 1.0).
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  const Value* find(const Value& key) const;
  void set(const Value& key, const Value& value);  // REQUIRES: the key is hashable
};
struct View {  // dict.keys(), .values(), .items()
  enum Part { keys, values, items } part;
  std::shared_ptr<const Dict> dict;
};
struct Range {
  int64_t start, stop, step;
  int64_t size() const;
  int64_t at(int64_t index) const { return start + index * step; }
};
// A generator: gives each item once.
struct Iterator {
  std::function<std::optional<Value>()> next;
};
struct Namespace {
  Dict attributes;
};
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};
struct Function {
  std::string name, text;  // `text`: what it prints as; empty: unknown (an address in memory)
  std::function<Value(const Arguments&)> call;
};
// `loop` of a for statement.
struct Loop {
  Value get(std::string_view attribute) const;  // the engine's own; see loop.cpp
  std::function<std::optional<Value>()> pull;
  std::function<std::optional<int64_t>()> size;  // where the iterable knows it
  int64_t index0 = -1;
  std::vector<Value> ahead;           // pulled, not yet given; the last one comes next
  std::shared_ptr<Value> before, current;  // null: none
  std::optional<int64_t> length;
  std::shared_ptr<Value> changed;
};

enum class Type { undefined, none, boolean, integer, real, text, list, tuple, dict, view, range, iterator, space, function, loop };

class Value {
 public:
  Value() : data_(None{}) {}
  Value(std::nullptr_t) : data_(None{}) {}
  Value(Undefined u) : data_(std::move(u)) {}
  Value(bool b) : data_(b) {}
  Value(int64_t i) : data_(i) {}
  Value(int i) : data_(static_cast<int64_t>(i)) {}
  Value(double d) : data_(d) {}
  Value(std::string s) : data_(Text{std::make_shared<const std::string>(std::move(s))}) {}
  Value(std::string_view s) : Value(std::string(s)) {}
  Value(const char* s) : Value(std::string(s)) {}
  Value(Text t) : data_(std::move(t)) {}
  Value(List items) : data_(std::make_shared<const List>(std::move(items))) {}
  Value(Tuple t) : data_(std::move(t)) {}
  Value(Dict d) : data_(std::make_shared<const Dict>(std::move(d))) {}
  Value(View v) : data_(std::move(v)) {}
  Value(Range r) : data_(r) {}
  Value(std::shared_ptr<Iterator> i) : data_(std::move(i)) {}
  Value(std::shared_ptr<Namespace> n) : data_(std::move(n)) {}
  Value(std::shared_ptr<const Function> f) : data_(std::move(f)) {}
  Value(std::shared_ptr<Loop> l) : data_(std::move(l)) {}

  Type type() const { return static_cast<Type>(data_.index()); }
  bool is(Type t) const { return type() == t; }

  // REQUIRES: of that type.
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const { return std::get<int64_t>(data_); }
  double real() const { return std::get<double>(data_); }
  const std::string& text() const { return *std::get<Text>(data_).bytes; }
  bool safe() const { return is(Type::text) && std::get<Text>(data_).safe; }
  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  const List& items() const {  // of a list or a tuple
    return is(Type::tuple) ? *std::get<Tuple>(data_).items : *std::get<std::shared_ptr<const List>>(data_);
  }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  std::shared_ptr<const Dict> shared_dict() const { return std::get<std::shared_ptr<const Dict>>(data_); }
  const View& view() const { return std::get<View>(data_); }
  const Range& range() const { return std::get<Range>(data_); }
  Iterator& iterator() const { return *std::get<std::shared_ptr<Iterator>>(data_); }
  Namespace& space() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }
  Loop& loop() const { return *std::get<std::shared_ptr<Loop>>(data_); }
  const void* identity() const;  // of what is held by reference; null otherwise

 private:
  std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const List>, Tuple,
               std::shared_ptr<const Dict>, View, Range, std::shared_ptr<Iterator>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Function>, std::shared_ptr<Loop>>
      data_;
};

Value tuple(List items);
Value undefined(std::string message);
Value generator(std::function<std::optional<Value>()> next);
[[noreturn]] void fail_undefined(const Value& value);

// A JSON value as Python's json reads it. Throws Error (unsupported) for integers beyond 64 bits.
Value from_json(const nlohmann::ordered_json& json);

const char* type_name(const Value& value);  // Python's: str, NoneType ...
bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
// a < b; fails for what has no order.
bool less(const Value& a, const Value& b);
bool contains(const Value& container, const Value& item);
bool is_hashable(const Value& value);

// str() and repr(). Unsupported for what prints an address.
std::string to_text(const Value& value);
std::string to_repr(const Value& value);
// json.dumps. INDENT none: one line.
struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator, key_separator;
};
std::string to_json(const Value& value, const JsonStyle& style);

// len(); nothing where Python raises TypeError.
std::optional<int64_t> size_of(const Value& value);
bool is_iterable(const Value& value);
// Gives the items one by one; fails for what cannot be iterated.
std::function<std::optional<Value>()> iterate(const Value& value);
List to_list(const Value& value);

}  // namespace cairn::jinja
