#include "trainer/rl/tasks/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "trainer/data/byte_stream.h"
#include "trainer/data/documents.h"
#include "trainer/data/files.h"

namespace cairn::rl {
namespace {
const std::vector<std::string> kEndings = {".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst"};
constexpr std::string_view kBlank = " \t\r\n";

[[noreturn]] void fail(const std::string& path, int64_t line, const std::string& what) {
  throw std::runtime_error(fmt::format("{}: line {}: {}", path, line, what));
}

std::string read_stream(const std::string& path) {
  const auto stream = data::open_stream(path);
  std::string text;
  constexpr size_t kChunk = 1 << 20;
  for (size_t got = 1; got > 0;) {
    const size_t size = text.size();
    text.resize(size + kChunk);
    got = stream->read(text.data() + size, kChunk);
    text.resize(size + got);
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return text;
}
}  // namespace

Records::Records(const std::string& pattern) {
  for (const auto& stamp : data::list_files(pattern, kEndings)) {
    files_.push_back({stamp.path, read_stream(stamp.path)});
    const auto& [path, text] = files_.back();
    if (const int64_t bad = data::invalid_utf8(text); bad >= 0)
      fail(path, 1 + std::count(text.begin(), text.begin() + bad, '\n'), "invalid UTF-8; convert the file to UTF-8");
    const auto first = text.find_first_not_of(kBlank);
    if (first == std::string::npos) continue;
    if (text[first] == '[') {
      split_array(files_.size() - 1, first + 1,
                  1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(first), '\n'));
    } else {
      split_lines(files_.size() - 1);
    }
  }
  if (records_.empty())
    throw std::runtime_error(
        fmt::format("{}: found no record, expected JSON objects, one a line or in an array", pattern));
}

void Records::split_lines(size_t file) {
  const std::string& text = files_[file].text;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    ++line;
    if (const auto first = text.find_first_not_of(kBlank, begin); first < end)
      records_.push_back({file, begin, end, line});
    begin = end + 1;
  }
}

// Finds where the entries of the array begin and end, by brackets and strings alone; at() parses them one by one.
void Records::split_array(size_t file, size_t begin, int64_t line) {
  const auto& [path, text] = files_[file];
  const int64_t opened = line;
  int depth = 1;
  bool string = false, content = false, after_comma = false;
  size_t entry = begin;
  int64_t entry_line = line;
  const auto finish = [&](size_t end) {
    if (!content) fail(path, line, "found nothing where an entry of the array is expected");
    records_.push_back({file, entry, end, entry_line});
  };
  size_t i = begin;
  for (; i < text.size() && depth > 0; ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (string) {
      if (c == '\\') ++i;
      string = c != '"';
      continue;
    }
    if (depth == 1 && (c == ',' || c == ']')) {
      if (c == ',' || content || after_comma) finish(i);
      after_comma = c == ',';
      content = false;
      if (c == ']') --depth;
      continue;
    }
    if (kBlank.find(c) != kBlank.npos) continue;
    if (!content) entry = i, entry_line = line, content = true;
    string = c == '"';
    depth += c == '[' || c == '{' ? 1 : c == ']' || c == '}' ? -1 : 0;
  }
  if (depth > 0) fail(path, opened, "the array that begins here is not closed: the file ends inside it");
  if (const auto more = text.find_first_not_of(kBlank, i); more != std::string::npos)
    fail(path,
         line + std::count(text.begin() + static_cast<std::ptrdiff_t>(i),
                           text.begin() + static_cast<std::ptrdiff_t>(more), '\n'),
         "found more behind the end of the array, expected one array of objects or an object a line");
}

std::string_view Records::text(int64_t index) const {
  const auto& record = records_[index];
  return std::string_view(files_[record.file].text).substr(record.begin, record.end - record.begin);
}

std::string Records::where(int64_t index) const { return fmt::format("{}: line {}", file(index), line(index)); }

Json Records::at(int64_t index) const {
  const auto bytes = text(index);
  Json object;
  try {
    object = Json::parse(bytes);
  } catch (const Json::parse_error& error) {
    const auto at = std::min<size_t>(error.byte > 0 ? error.byte - 1 : 0, bytes.size());
    const auto before = bytes.substr(0, at);
    const auto start = before.rfind('\n');
    fail(file(index), line(index) + std::count(before.begin(), before.end(), '\n'),
         fmt::format("not JSON: at byte {} of the line; expected an object a line, or one array of objects",
                     start == before.npos ? at + 1 : at - start));
  }
  if (!object.is_object())
    fail(file(index), line(index), fmt::format("expected a JSON object, found {}", object.type_name()));
  return object;
}

}  // namespace cairn::rl
