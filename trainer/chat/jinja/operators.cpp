// Python's arithmetic on what templates compute with, and how its functions take arguments.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/format.h"
#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

bool is_whole(const Value& v) { return v.is(Type::boolean) || v.is(Type::integer); }
bool is_number(const Value& v) { return is_whole(v) || v.is(Type::real); }
int64_t whole(const Value& v) { return v.is(Type::boolean) ? v.boolean() : v.integer(); }
double real(const Value& v) { return v.is(Type::real) ? v.real() : static_cast<double>(whole(v)); }

[[noreturn]] void too_large() { unsupported("an integer beyond 64 bits"); }

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) fail("integer division or modulo by zero");
  if (a == std::numeric_limits<int64_t>::min() && b == -1) too_large();
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

double modulo(double a, double b) {
  if (b == 0) fail("float modulo");
  double m = std::fmod(a, b);
  if (m != 0) {
    if ((b < 0) != (m < 0)) m += b;
  } else {
    m = std::copysign(0.0, b);
  }
  return m;
}

// float.__floordiv__
double floor_divide(double a, double b) {
  if (b == 0) fail("float floor division by zero");
  double m = std::fmod(a, b), quotient = (a - m) / b;
  if (m != 0 && (b < 0) != (m < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

Value power(const Value& a, const Value& b) {
  if (is_whole(a) && is_whole(b) && whole(b) >= 0) {
    int64_t base = whole(a), result = 1;
    for (uint64_t exponent = whole(b); exponent; exponent >>= 1) {
      if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) too_large();
      if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) too_large();
    }
    return result;
  }
  const double x = real(a), y = real(b);
  if (x == 0 && y < 0) fail("0.0 cannot be raised to a negative power");
  if (x < 0 && y != std::floor(y)) unsupported("a complex number");
  const double result = std::pow(x, y);
  if (std::isinf(result) && std::isfinite(x) && std::isfinite(y)) fail("Numerical result out of range");
  return result;
}

Value of_wholes(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+" && !__builtin_add_overflow(a, b, &result)) return result;
  if (op == "-" && !__builtin_sub_overflow(a, b, &result)) return result;
  if (op == "*" && !__builtin_mul_overflow(a, b, &result)) return result;
  if (op == "//") return floor_divide(a, b);
  if (op == "%") return b == -1 ? 0 : a - floor_divide(a, b) * b;
  if (op == "/") {
    if (b == 0) fail("division by zero");
    constexpr int64_t kExact = int64_t{1} << 53;
    if (std::abs(a) > kExact || std::abs(b) > kExact) unsupported("dividing integers beyond 53 bits");
    return static_cast<double>(a) / static_cast<double>(b);
  }
  too_large();
}

Value of_reals(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "//") return floor_divide(a, b);
  if (op == "%") return modulo(a, b);
  if (b == 0) fail("float division by zero");
  return a / b;
}

Value repeated(Host& host, const Value& of, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const bool is_text = of.is(Type::text);
  const size_t size = is_text ? of.text().size() : of.items().size();
  if (size > 0 && count > (int64_t{256} << 20) / static_cast<int64_t>(size))
    throw Error(Fault::limit, "a value repeated too often");
  host.spend(static_cast<int64_t>(size) * count / (is_text ? 32 : 1));
  if (is_text) {
    std::string out;
    for (; count > 0; --count) out += of.text();
    return out;
  }
  List items;
  for (; count > 0; --count) items.insert(items.end(), of.items().begin(), of.items().end());
  return of.is(Type::tuple) ? tuple(std::move(items)) : Value(std::move(items));
}

}  // namespace

Value binary(Host& host, std::string_view op, const Value& a, const Value& b) {
  if (a.safe() || b.safe()) unsupported(fmt::format("'{}' on a text marked safe", op));
  if (is_number(a) && is_number(b)) {
    if (op == "**") return power(a, b);
    return is_whole(a) && is_whole(b) ? of_wholes(op, whole(a), whole(b)) : of_reals(op, real(a), real(b));
  }
  if (a.is(Type::undefined)) fail_undefined(a);
  if (op == "%" && a.is(Type::text)) {
    host.spend(static_cast<int64_t>(a.text().size()));
    return percent_format(a.text(), b);
  }
  if (b.is(Type::undefined)) fail_undefined(b);
  if (op == "+") {
    if (a.is(Type::text) && b.is(Type::text)) {
      const size_t size = a.text().size() + b.text().size();
      host.spend(static_cast<int64_t>(size / 32));
      if (size > size_t{256} << 20) throw Error(Fault::limit, "a text of more than 256 MiB");
      return a.text() + b.text();
    }
    if (a.type() == b.type() && (a.is(Type::list) || a.is(Type::tuple))) {
      List items = a.items();
      items.insert(items.end(), b.items().begin(), b.items().end());
      host.spend(static_cast<int64_t>(items.size()));
      return a.is(Type::tuple) ? tuple(std::move(items)) : Value(std::move(items));
    }
    if (a.is(Type::text)) fail(fmt::format("can only concatenate str (not \"{}\") to str", type_name(b)));
  }
  const auto repeats = [](const Value& v) { return v.is(Type::text) || v.is(Type::list) || v.is(Type::tuple); };
  if (op == "*" && repeats(a) && is_whole(b)) return repeated(host, a, whole(b));
  if (op == "*" && repeats(b) && is_whole(a)) return repeated(host, b, whole(a));
  if (a.is(Type::view) || b.is(Type::view)) unsupported(fmt::format("'{}' on a view of a dict", op));
  fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", op, type_name(a), type_name(b)));
}

Value with_sign(std::string_view op, const Value& a) {
  if (a.is(Type::undefined)) fail_undefined(a);
  if (!is_number(a)) fail(fmt::format("bad operand type for unary {}: '{}'", op, type_name(a)));
  if (a.is(Type::real)) return op == "-" ? -a.real() : a.real();
  return op == "-" ? of_wholes("-", 0, whole(a)) : Value(whole(a));
}

std::vector<std::optional<Value>> bind(const char* function, const Arguments& arguments,
                                       const std::vector<const char*>& names, size_t required) {
  std::vector<std::optional<Value>> bound(names.size());
  if (arguments.positional.size() > names.size())
    fail(fmt::format("{}() takes at most {} arguments ({} given)", function, names.size(), arguments.positional.size()));
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = arguments.positional[i];
  for (const auto& [key, value] : arguments.named) {
    size_t i = 0;
    for (const char* name : names) {
      if (key == name) break;
      ++i;
    }
    if (i == names.size()) fail(fmt::format("{}() got an unexpected keyword argument {}", function, repr(key)));
    if (bound[i]) fail(fmt::format("{}() got multiple values for argument {}", function, repr(key)));
    bound[i] = value;
  }
  for (size_t i = 0; i < required; ++i)
    if (!bound[i]) fail(fmt::format("{}() is missing an argument", function));
  return bound;
}

int64_t integer_argument(const Value& value) {
  if (!is_whole(value)) fail(fmt::format("'{}' object cannot be interpreted as an integer", type_name(value)));
  return whole(value);
}

const std::string& text_argument(const Value& value) {
  if (value.safe()) unsupported("a text marked safe as an argument");
  if (!value.is(Type::text)) fail(fmt::format("must be str, not {}", type_name(value)));
  return value.text();
}

}  // namespace cairn::jinja
