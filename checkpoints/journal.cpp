#include "checkpoints/journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>

#include "checkpoints/crc32c.h"
#include "checkpoints/file.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::string_view kStep = "{\"step\":";
constexpr std::string_view kCrc = ",\"crc\":\"";  // then 8 digits and "}
constexpr size_t kCrcLength = kCrc.size() + 8 + 2;

[[noreturn]] void fail(const char* doing, const fs::path& path) {
  const int error = errno;
  throw std::runtime_error(fmt::format("cannot {} {}: {}{}", doing, path.string(), std::strerror(error),
                                       error == ENOSPC ? ": free space there" : ""));
}

std::array<char, 8> hex_crc(std::string_view body) {
  const uint32_t crc = crc32c(body.data(), body.size());
  std::array<char, 8> digits;
  for (int k = 0; k < 8; ++k) digits[k] = "0123456789abcdef"[crc >> (28 - 4 * k) & 15];
  return digits;
}

// The step of a whole line; nothing where the line is torn or changed.
std::optional<int64_t> step_of(std::string_view line) {
  if (line.size() < kStep.size() + kCrcLength || !line.starts_with(kStep)) return std::nullopt;
  const std::string_view body = line.substr(0, line.size() - kCrcLength), guard = line.substr(body.size());
  if (!guard.starts_with(kCrc) || !guard.ends_with("\"}")) return std::nullopt;
  if (guard.substr(kCrc.size(), 8) != std::string_view(hex_crc(body).data(), 8)) return std::nullopt;
  int64_t step;
  const auto [end, error] = std::from_chars(body.data() + kStep.size(), body.data() + body.size(), step);
  if (error != std::errc() || (end != body.data() + body.size() && *end != ',')) return std::nullopt;
  return step;
}

// Index of the lines with a step up to `limit`. A damaged line that others follow is an error, unless it comes after a
// line of step `limit`: what lies behind is going to be cut off.
JournalIndex scan(const fs::path& path, std::string_view text, int64_t limit) {
  JournalIndex index;
  while (index.bytes < text.size()) {
    const size_t begin = index.bytes, newline = text.find('\n', begin);
    const bool whole = newline != std::string_view::npos;
    const std::string_view line = text.substr(begin, whole ? newline - begin : std::string_view::npos);
    const std::optional<int64_t> step = whole ? step_of(line) : std::nullopt;
    if (!step) {
      const bool passed = !index.lines.empty() && index.lines.back().step >= limit;
      if (whole && newline + 1 < text.size() && !passed)
        throw std::runtime_error(
            fmt::format("{}: line {} (offset {}) is damaged: its checksum does not fit; '{}...' found", path.string(),
                        index.lines.size() + 1, begin, line.substr(0, 60)));
      index.torn = true;
      break;
    }
    if (*step > limit) break;
    index.lines.push_back({*step, begin, static_cast<uint32_t>(line.size())});
    index.bytes = newline + 1;
  }
  return index;
}

std::string read_or_empty(const fs::path& path) { return fs::exists(path) ? read_file(path) : std::string(); }

}  // namespace

JournalIndex index_journal(const fs::path& path) {
  return scan(path, read_or_empty(path), std::numeric_limits<int64_t>::max());
}

std::vector<ordered_json> read_journal(const fs::path& path, int64_t from, int64_t to) {
  const std::string text = read_or_empty(path);
  std::vector<ordered_json> lines;
  for (const auto& line : scan(path, text, std::numeric_limits<int64_t>::max()).lines) {
    if (line.step < from || line.step > to) continue;
    const char* begin = text.data() + line.offset;
    ordered_json parsed = ordered_json::parse(begin, begin + line.length);
    parsed.erase("crc");
    lines.push_back(std::move(parsed));
  }
  return lines;
}

Journal::Journal(fs::path path, int64_t keep_to) : path_(std::move(path)) {
  const std::string text = read_or_empty(path_);
  const JournalIndex index = scan(path_, text, keep_to);
  if (!index.lines.empty()) last_step_ = index.lines.back().step;
  size_ = index.bytes;
  if (index.bytes < text.size()) replace_file(path_, std::string_view(text).substr(0, index.bytes));
  reopen();
}

Journal::Journal(Journal&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      last_step_(other.last_step_) {}

Journal::~Journal() {
  if (fd_ >= 0) ::close(fd_);
}

void Journal::reopen() {
  if (fd_ >= 0) ::close(fd_);
  const bool fresh = !fs::exists(path_);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("open", path_);
  if (fresh) sync_folder(path_.parent_path());
}

void Journal::append(const ordered_json& line) {
  if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer())
    throw std::invalid_argument(fmt::format("{}: a journal line is an object with an integer 'step'; {} given",
                                            path_.string(),
                                            line.dump(-1, ' ', false, ordered_json::error_handler_t::replace)));
  if (line.contains("crc"))
    throw std::invalid_argument(fmt::format("{}: the key 'crc' of a journal line is reserved", path_.string()));
  const int64_t step = line["step"].get<int64_t>();
  if (step < last_step_)
    throw std::invalid_argument(
        fmt::format("{}: step {} after step {}: truncate the journal first", path_.string(), step, last_step_));
  ordered_json ordered = {{"step", step}};
  for (const auto& [key, value] : line.items())
    if (key != "step") ordered[key] = value;
  std::string text = ordered.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  text.pop_back();
  text += fmt::format("{}{}\"}}\n", kCrc, std::string_view(hex_crc(text).data(), 8));
  const ssize_t written = ::write(fd_, text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    if (written >= 0) errno = ENOSPC;  // a short write to a file: the disk is full
    const int error = errno;
    if (::ftruncate(fd_, size_) != 0) { /* the torn line is dropped by the next reader */
    }
    errno = error;
    fail("append to", path_);
  }
  size_ += text.size();
  last_step_ = step;
}

void Journal::sync() {
  if (::fdatasync(fd_) != 0) fail("sync", path_);
}

void Journal::truncate_after(int64_t step) {
  const std::string text = read_file(path_);
  const JournalIndex index = scan(path_, text, step);
  if (index.bytes < text.size()) {
    replace_file(path_, std::string_view(text).substr(0, index.bytes));
    size_ = index.bytes;
    reopen();
  }
  last_step_ = index.lines.empty() ? std::numeric_limits<int64_t>::min() : index.lines.back().step;
}

}  // namespace cairn::checkpoints
