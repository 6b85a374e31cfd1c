// The functions that chat templates find without anybody giving them.
#include <fmt/format.h>

#include <cstdlib>
#include <ctime>

#include "trainer/chat/jinja/builtins.h"
#include "trainer/chat/jinja/text.h"

namespace cairn::jinja {
namespace {

// dict(mapping or pairs, key=value ...)
Dict dict_of(const char* name, const Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1)
    fail(fmt::format("{} expected at most 1 argument, got {}", name, arguments.positional.size()));
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.is(Type::dict)) {
      dict = from.dict();
    } else {
      for (const Value& pair : to_list(from)) {
        const List parts = to_list(pair);
        if (parts.size() != 2) fail("dictionary update sequence element has no length of 2");
        if (!is_hashable(parts[0])) fail(fmt::format("unhashable type: '{}'", type_name(parts[0])));
        dict.set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [key, value] : arguments.named) dict.set(key, value);
  return dict;
}

Value make_dict(Host&, const Arguments& arguments) { return dict_of("dict", arguments); }

Value make_namespace(Host& host, const Arguments& arguments) {
  auto space = std::make_shared<Namespace>(Namespace{dict_of("dict", arguments)});
  for (const auto& [key, value] : space->attributes.entries)
    if (key.is(Type::text) && key.text().starts_with("_"))
      fail(fmt::format("Chat templates cannot store underscore-prefixed attributes on a namespace, but got {}. Please "
                       "rename the attribute.",
                       to_repr(key)));
  host.adopt(space);
  return space;
}

Value make_range(Host&, const Arguments& arguments) {
  if (!arguments.named.empty()) fail("range() takes no keyword arguments");
  const List& given = arguments.positional;
  if (given.empty() || given.size() > 3) fail(fmt::format("range expected 1 to 3 arguments, got {}", given.size()));
  Range range{0, 0, 1};
  if (given.size() == 1) {
    range.stop = integer_argument(given[0]);
  } else {
    range.start = integer_argument(given[0]);
    range.stop = integer_argument(given[1]);
    if (given.size() == 3) range.step = integer_argument(given[2]);
  }
  if (range.step == 0) fail("range() arg 3 must not be zero");
  const __int128 span = static_cast<__int128>(range.stop) - range.start;
  const __int128 step = range.step;
  const __int128 size = step > 0 ? (span > 0 ? (span - 1) / step + 1 : 0) : (span < 0 ? (-span - 1) / -step + 1 : 0);
  if (size > 100'000) fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  return range;
}

Value raise(Host&, const Arguments& arguments) {
  const auto given = bind("raise_exception", arguments, {"message"}, 1);
  throw Error(Fault::raised, to_text(*given[0]));
}

// datetime.now().strftime(format): local time, no zone.
Value format_now(Host& host, const Arguments& arguments) {
  const auto given = bind("strftime_now", arguments, {"format"}, 1);
  const auto now = host.now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(std::chrono::floor<std::chrono::seconds>(now));
  std::tm local{};
  localtime_r(&seconds, &local);
  std::string format, out;
  const std::string& wanted = text_argument(*given[0]);
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] != '%' || i + 1 >= wanted.size()) {
      format += wanted[i];
      continue;
    }
    const char c = wanted[++i];
    if (c == 'f') {
      const auto part = std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count() % 1'000'000;
      format += fmt::format("{:06}", part);
    } else if (c != 'z' && c != 'Z') {
      if (std::string_view("aAbBcdHIjmMpSUwWxXyY%eDFGgVuhnRrTtCklPs").find(c) == std::string_view::npos)
        unsupported(fmt::format("'%{}' in strftime_now", c));
      format += {'%', c};
    }
  }
  if (format.empty()) return "";
  format += ' ';  // so that nothing written is told from no room
  for (out.resize(256);; out.resize(out.size() * 2)) {
    if (const size_t size = std::strftime(out.data(), out.size(), format.c_str(), &local)) {
      out.resize(size - 1);
      return out;
    }
    if (out.size() > (size_t{1} << 24)) throw Error(Fault::limit, "too long a format of strftime_now");
  }
}

Value refuse_lipsum(Host&, const Arguments&) { unsupported("the function 'lipsum'"); }
Value refuse_cycler(Host&, const Arguments&) { unsupported("the function 'cycler'"); }
Value refuse_joiner(Host&, const Arguments&) { unsupported("the function 'joiner'"); }

struct Entry {
  const char* name;
  Value (*call)(Host&, const Arguments&);
};
constexpr Entry kGlobals[] = {
    {"range", make_range},
    {"dict", make_dict},
    {"namespace", make_namespace},
    {"raise_exception", raise},
    {"strftime_now", format_now},
    {"lipsum", refuse_lipsum},
    {"cycler", refuse_cycler},
    {"joiner", refuse_joiner},
};

}  // namespace

std::optional<Value> global(Host& host, std::string_view name) {
  for (const Entry& entry : kGlobals) {
    if (name != entry.name) continue;
    return std::make_shared<const Function>(
        Function{entry.name, "", [&host, call = entry.call](const Arguments& a) { return call(host, a); }});
  }
  return std::nullopt;
}

}  // namespace cairn::jinja
