// '...' % values and '...'.format(...), as far as templates go: what is beyond is refused by name.
#include "trainer/chat/jinja/format.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

std::string padded(const std::string& text, size_t width, bool left, char fill) {
  const size_t has = static_cast<size_t>(length(text));
  if (has >= width) return text;
  const std::string space(width - has, fill);
  return left ? text + space : space + text;
}

// A number below LIMIT at AT; nothing where there is none.
std::optional<size_t> read_number(const std::string& text, size_t& at) {
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
  if (end == text.data() + at) return std::nullopt;
  if (error != std::errc() || value > 100'000) throw Error(Fault::limit, "a width of a format is too large");
  at = end - text.data();
  return value;
}

struct Conversion {
  bool left = false, zeros = false, plus = false, space = false;
  size_t width = 0;
  std::optional<size_t> precision;
  char kind = 's';
};

// The sign and zeros in front of DIGITS.
std::string number(const Conversion& c, bool negative, const std::string& digits) {
  const std::string sign = negative ? "-" : c.plus ? "+" : c.space ? " " : "";
  if (c.zeros && !c.left && sign.size() + digits.size() < c.width)
    return sign + std::string(c.width - sign.size() - digits.size(), '0') + digits;
  return padded(sign + digits, c.width, c.left, ' ');
}

std::string convert(const Conversion& c, const Value& value) {
  switch (c.kind) {
    case 's':
    case 'r': {
      std::string text = c.kind == 's' ? to_text(value) : to_repr(value);
      if (c.precision && static_cast<int64_t>(*c.precision) < length(text)) text.resize(offset_of(text, *c.precision));
      return padded(text, c.width, c.left, ' ');
    }
    case 'd':
    case 'i':
    case 'x': {
      if (value.is(Type::real) && c.kind != 'x') {
        if (!(std::abs(value.real()) < 9e18)) unsupported("formatting so large a number as an integer");
      } else if (!value.is(Type::integer) && !value.is(Type::boolean)) {
        fail(fmt::format("%{} format: a real number is required, not {}", c.kind, type_name(value)));
      }
      if (c.precision) unsupported("a precision of an integer in a format");
      const int64_t n = value.is(Type::real) ? static_cast<int64_t>(value.real()) : integer_argument(value);
      const uint64_t magnitude = n < 0 ? 0 - static_cast<uint64_t>(n) : n;
      return number(c, n < 0, c.kind == 'x' ? fmt::format("{:x}", magnitude) : fmt::format("{}", magnitude));
    }
    case 'f': {
      if (!value.is(Type::real) && !value.is(Type::integer) && !value.is(Type::boolean))
        fail(fmt::format("must be real number, not {}", type_name(value)));
      const double x = value.is(Type::real) ? value.real() : static_cast<double>(integer_argument(value));
      if (!std::isfinite(x)) unsupported("formatting an infinite number");
      return number(c, std::signbit(x), fmt::format("{:.{}f}", std::abs(x), c.precision.value_or(6)));
    }
    default:
      unsupported(fmt::format("the conversion '%{}' of a format", c.kind));
  }
}

}  // namespace

std::string percent_format(const std::string& text, const Value& values) {
  std::string out;
  size_t taken = 0;
  bool by_name = false;
  const auto next = [&]() -> Value {
    if (values.is(Type::tuple)) {
      if (taken >= values.items().size()) fail("not enough arguments for format string");
      return values.items()[taken++];
    }
    if (taken++ > 0) fail("not enough arguments for format string");
    return values;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (++i >= text.size()) fail("incomplete format");
    if (text[i] == '%') {
      out += '%';
      continue;
    }
    std::optional<Value> named;
    if (text[i] == '(') {
      const size_t close = text.find(')', i);
      if (close == std::string::npos) fail("incomplete format key");
      const std::string key = text.substr(i + 1, close - i - 1);
      if (key.find('(') != std::string::npos) unsupported("parentheses in a format key");
      if (!values.is(Type::dict)) fail("format requires a mapping");
      const Value* found = values.dict().find(key);
      if (!found) fail(repr(key));
      named = *found;
      by_name = true;
      i = close + 1;
    }
    Conversion c;
    for (; i < text.size() && std::string_view("-0+ #").find(text[i]) != std::string_view::npos; ++i) {
      c.left |= text[i] == '-';
      c.zeros |= text[i] == '0';
      c.plus |= text[i] == '+';
      c.space |= text[i] == ' ';
      if (text[i] == '#') unsupported("'#' in a format");
    }
    if (const auto width = read_number(text, i)) c.width = *width;
    if (i < text.size() && text[i] == '.') {
      ++i;
      c.precision = read_number(text, i).value_or(0);
    }
    if (i < text.size() && text[i] == '*') unsupported("'*' in a format");
    if (i >= text.size()) fail("incomplete format");
    c.kind = text[i];
    if (c.kind == '%') unsupported("'%' after a width in a format");
    out += convert(c, named ? *named : next());
  }
  const size_t given = values.is(Type::tuple) ? values.items().size() : 1;
  const bool may_be_left = values.is(Type::dict) || values.is(Type::list) || values.is(Type::undefined) || by_name;
  if (values.is(Type::list) && taken == 0) unsupported("a list as the values of a format");
  if (taken < given && !(may_be_left && !values.is(Type::tuple))) fail("not all arguments converted during string formatting");
  return out;
}

std::string brace_format(Host& host, const std::string& text, const Arguments& arguments) {
  std::string out;
  size_t automatic = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '{' && text[i] != '}') {
      out += text[i];
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
      continue;
    }
    if (text[i] == '}') fail("Single '}' encountered in format string");
    const size_t close = text.find_first_of("{}", i + 1);
    if (close == std::string::npos) fail("expected '}' before end of string");
    if (text[close] == '{') unsupported("a field inside a field of a format");
    std::string field = text.substr(i + 1, close - i - 1);
    i = close;
    if (field.find(':') != std::string::npos) unsupported("a format specification (':') in str.format");
    char conversion = 's';
    if (const size_t mark = field.find('!'); mark != std::string::npos) {
      if (field.size() != mark + 2 || (field[mark + 1] != 's' && field[mark + 1] != 'r'))
        unsupported(fmt::format("the conversion '{}' in str.format", field.substr(mark)));
      conversion = field[mark + 1];
      field.resize(mark);
    }
    if (field.find_first_of(".[") != std::string::npos) unsupported("attributes of fields in str.format");
    size_t at = 0;
    const bool numbered = field.empty() || (read_number(field, at) && at == field.size());
    std::optional<Value> value;
    if (numbered) {
      at = 0;
      if (field.empty() && automatic == std::string::npos) fail("cannot switch from manual field specification to automatic field numbering");
      if (!field.empty() && automatic != 0 && automatic != std::string::npos) fail("cannot switch from automatic field numbering to manual field specification");
      const size_t index = field.empty() ? automatic++ : *read_number(field, at);
      if (!field.empty()) automatic = std::string::npos;
      if (index >= arguments.positional.size()) fail("Replacement index out of range for positional args tuple");
      value = arguments.positional[index];
    } else {
      for (const auto& [key, given] : arguments.named)
        if (key == field) value = given;
      if (!value) fail(repr(field));
    }
    if (value->safe()) unsupported("a text marked safe in str.format");
    out += conversion == 'r' ? to_repr(*value) : to_text(*value);
    host.spend(static_cast<int64_t>(out.size() / 32));
  }
  return out;
}

}  // namespace cairn::jinja
