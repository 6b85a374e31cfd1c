// JSON as the formats here need it: a key given twice, a NUL byte, a byte-order mark are errors, not surprises.
#pragma once
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace cairn::checkpoints {

struct JsonError : std::runtime_error {
  JsonError(const std::string& message, bool duplicate) : std::runtime_error(message), duplicate(duplicate) {}
  bool duplicate;  // a key given twice
};

/// Throws JsonError naming the byte.
nlohmann::ordered_json parse_strict(std::string_view text);

/// Offset of the first byte that is not part of well-formed UTF-8; text.size() where all is.
size_t utf8_error(std::string_view text);

}  // namespace cairn::checkpoints
