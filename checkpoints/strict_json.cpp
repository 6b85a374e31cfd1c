#include "checkpoints/strict_json.h"

#include <fmt/format.h>

#include <unordered_set>
#include <vector>

namespace cairn::checkpoints {

using nlohmann::ordered_json;

ordered_json parse_strict(std::string_view text) {
  // The parser takes a NUL for the end of the text and skips a byte-order mark: neither is JSON.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw JsonError(fmt::format("a NUL byte at byte {}", nul), false);
  if (text.starts_with("\xEF\xBB\xBF")) throw JsonError("a byte-order mark at byte 0", false);
  std::vector<std::unordered_set<std::string>> open;
  const auto watch = [&](int, ordered_json::parse_event_t event, ordered_json& parsed) {
    using Event = ordered_json::parse_event_t;
    if (event == Event::object_start) open.emplace_back();
    if (event == Event::object_end) open.pop_back();
    if (event == Event::key && !open.back().insert(parsed.get_ref<const std::string&>()).second)
      throw JsonError(fmt::format("the key '{}' is given twice", parsed.get_ref<const std::string&>()), true);
    return true;
  };
  try {
    return ordered_json::parse(text.begin(), text.end(), watch);
  } catch (const ordered_json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": from the place on.
    const std::string_view what = e.what();
    const size_t at = what.find("] ");
    throw JsonError(std::string(at == std::string_view::npos ? what : what.substr(at + 2)), false);
  }
}

size_t utf8_error(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto tail = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  for (size_t i = 0; i < text.size();) {
    const unsigned b = byte(i), c = byte(i + 1);
    if (b < 0x80) {
      i += 1;
    } else if (b >= 0xC2 && b < 0xE0 && tail(i + 1)) {
      i += 2;
    } else if ((b & 0xF0) == 0xE0 && tail(i + 1) && tail(i + 2) && !(b == 0xE0 && c < 0xA0) &&
               !(b == 0xED && c > 0x9F)) {
      i += 3;
    } else if (b >= 0xF0 && b < 0xF5 && tail(i + 1) && tail(i + 2) && tail(i + 3) && !(b == 0xF0 && c < 0x90) &&
               !(b == 0xF4 && c > 0x8F)) {
      i += 4;
    } else {
      return i;
    }
  }
  return text.size();
}

}  // namespace cairn::checkpoints
