// Python's `str`, as templates see it: characters are code points, texts are valid UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::jinja {

// ---- characters ----
int64_t length(std::string_view text);
// The byte at which character INDEX begins, 0 <= index <= length.
size_t offset_of(std::string_view text, int64_t index);
std::vector<std::string_view> characters(std::string_view text);
bool is_space(uint32_t code_point);  // str.isspace, and \s of Python's regular expressions

// ---- whitespace and parts ----
enum class Side { left, right, both };
// CHARS: the set of characters to strip; whitespace where there is none.
std::string_view strip(std::string_view text, std::optional<std::string_view> chars = {}, Side side = Side::both);
// str.split and str.rsplit; SEPARATOR none: runs of whitespace. LIMIT < 0: no limit. The separator is not empty.
std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator, int64_t limit,
                                    bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
// str.replace: at most COUNT times; COUNT < 0: all.
std::string replace(std::string_view text, std::string_view old, std::string_view fresh, int64_t count);
int64_t count_of(std::string_view text, std::string_view part);  // not overlapping

// ---- letter case, with Unicode's full mappings ----
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);          // str.title
std::string title_of_words(std::string_view text);  // Jinja's filter `title`
bool is_upper(std::string_view text);
bool is_lower(std::string_view text);
bool is_alpha(std::string_view text);
bool is_digit(std::string_view text);
bool is_alnum(std::string_view text);
bool is_all_space(std::string_view text);

// ---- repr() ----
std::string repr(std::string_view text);
std::string repr(double number);

// ---- int() and float() of a text; nothing where Python raises ValueError ----
// Throws Error (unsupported) for what lies beyond 64 bits.
std::optional<int64_t> to_integer(std::string_view text, int base);
std::optional<double> to_real(std::string_view text);

}  // namespace cairn::jinja
