// Where a setting was written, and the one shape of every configuration error.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::config {

struct Location {
  std::string file;  // as the user gave it; empty: the command line
  int line = 0;      // from 1

  std::string text() const;  // "FILE:LINE" or "command line"
  bool operator==(const Location&) const = default;
};

// What every mistake in a configuration throws: "FILE:LINE: key.path: found ..., expected ...".
struct ConfigError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Throws ConfigError "FILE:LINE: key: message" ("FILE:LINE: message" where key is empty).
[[noreturn]] void fail(const Location& where, std::string_view key, std::string_view message);

// The candidate that `key` most probably meant: another trainer's name for it, its initials, a part of it, or a
// spelling near to it. Empty where nothing is near.
std::string near_match(std::string_view key, const std::vector<std::string>& candidates);

// " (did you mean 'lr'?)", or "" where nothing is near.
std::string did_you_mean(std::string_view key, const std::vector<std::string>& candidates);

}  // namespace cairn::config
