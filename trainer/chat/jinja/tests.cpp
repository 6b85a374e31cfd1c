// What may follow `is`.
#include <fmt/format.h>

#include <map>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

struct Call {
  const Value& value;
  const Arguments& arguments;
  const char* name;

  void none() const { bind(name, arguments, {}, 0); }
  Value one(const char* parameter = "") const { return *bind(name, arguments, {parameter}, 1)[0]; }
};

// value % by
int64_t remainder(const Value& value, const Value& by) {
  if (value.is(Type::undefined)) fail_undefined(value);
  if (value.is(Type::real) || by.is(Type::real)) unsupported("this test of a float");
  const int64_t a = integer_argument(value), b = integer_argument(by);
  if (b == 0) fail("integer division or modulo by zero");
  if (b == -1) return 0;
  const int64_t r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

bool same(const Value& a, const Value& b) {
  const auto single = [](const Value& v) { return v.is(Type::none) || v.is(Type::boolean); };
  if (single(a) || single(b)) return a.type() == b.type() && equal(a, b);
  if (a.type() != b.type()) return false;
  if (!a.is(Type::list) && !a.is(Type::dict) && !a.is(Type::space)) unsupported("'is sameas' of this type");
  return a.identity() == b.identity();
}

template <Type... types>
bool is_of(const Call& c) {
  c.none();
  return (c.value.is(types) || ...);
}

// Whether a name stands there to be looked up.
bool names(const Call& c) {
  c.none();
  if (!is_hashable(c.value)) fail(fmt::format("unhashable type: '{}'", type_name(c.value)));
  return c.value.is(Type::text);
}

bool equals(const Call& c) { return equal(c.value, c.one()); }
bool differs(const Call& c) { return !equal(c.value, c.one()); }
bool below(const Call& c) { return less(c.value, c.one()); }
bool above(const Call& c) { return less(c.one(), c.value); }
bool at_most(const Call& c) { return less(c.value, c.one()) || equal(c.value, c.one()); }
bool at_least(const Call& c) { return less(c.one(), c.value) || equal(c.value, c.one()); }

using Test = bool (*)(const Call&);
const std::map<std::string_view, Test>& table() {
  static const std::map<std::string_view, Test> kTests = {
      {"defined", [](const Call& c) { return !is_of<Type::undefined>(c); }},
      {"undefined", is_of<Type::undefined>},
      {"none", is_of<Type::none>},
      {"boolean", is_of<Type::boolean>},
      {"true", [](const Call& c) { return is_of<Type::boolean>(c) && c.value.boolean(); }},
      {"false", [](const Call& c) { return is_of<Type::boolean>(c) && !c.value.boolean(); }},
      {"integer", is_of<Type::integer>},
      {"float", is_of<Type::real>},
      {"number", is_of<Type::boolean, Type::integer, Type::real>},
      {"string", is_of<Type::text>},
      {"mapping", is_of<Type::dict>},
      {"sequence", is_of<Type::text, Type::list, Type::tuple, Type::dict, Type::range, Type::undefined>},
      {"iterable", [](const Call& c) { return c.none(), is_iterable(c.value); }},
      {"callable", is_of<Type::function, Type::loop, Type::undefined>},
      {"escaped", [](const Call& c) { return c.none(), c.value.safe(); }},
      {"lower", [](const Call& c) { return c.none(), is_lower(to_text(c.value)); }},
      {"upper", [](const Call& c) { return c.none(), is_upper(to_text(c.value)); }},
      {"odd", [](const Call& c) { return c.none(), remainder(c.value, 2) == 1; }},
      {"even", [](const Call& c) { return c.none(), remainder(c.value, 2) == 0; }},
      {"divisibleby", [](const Call& c) { return remainder(c.value, c.one("num")) == 0; }},
      {"sameas", [](const Call& c) { return same(c.value, c.one("other")); }},
      {"in", [](const Call& c) { return contains(c.one("seq"), c.value); }},
      {"filter", [](const Call& c) { return names(c) && filter_standing(c.value.text()) != Standing::unknown; }},
      {"test", [](const Call& c) { return names(c) && is_test(c.value.text()); }},
      {"==", equals}, {"eq", equals}, {"equalto", equals},
      {"!=", differs}, {"ne", differs},
      {"<", below}, {"lt", below}, {"lessthan", below},
      {">", above}, {"gt", above}, {"greaterthan", above},
      {"<=", at_most}, {"le", at_most},
      {">=", at_least}, {"ge", at_least},
  };
  return kTests;
}

}  // namespace

bool is_test(std::string_view name) { return table().count(name) > 0; }

bool apply_test(Host& host, std::string_view name, const Value& value, const Arguments& arguments) {
  host.spend(1);
  const auto at = table().find(name);
  if (at == table().end()) fail(fmt::format("No test named {}.", repr(name)));
  return at->second(Call{value, arguments, at->first.data()});
}

}  // namespace cairn::jinja
