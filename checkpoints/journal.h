// journal.jsonl: one JSON object a line, appended and handed to the system at once. The first key is `step`, the last
// is `crc` (CRC-32C of the bytes before it), so a torn or changed line is seen. Lines come in the order of steps.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::checkpoints {

/// Where the lines lie, without what they say.
struct JournalIndex {
  struct Line {
    int64_t step;
    uint64_t offset;  // of the line's first byte
    uint32_t length;  // without the newline
  };
  std::vector<Line> lines;
  uint64_t bytes = 0;  // of the whole lines; what follows is torn
  bool torn = false;
};

/// The fast path: steps and offsets alone, checksums verified. Drops a torn end; a missing file is an empty journal.
/// Throws std::runtime_error naming file, line and offset where a line that is not the last is malformed.
JournalIndex index_journal(const std::filesystem::path& path);

/// All lines with from <= step <= to, parsed, `crc` taken out.
std::vector<nlohmann::ordered_json> read_journal(const std::filesystem::path& path, int64_t from = INT64_MIN,
                                                 int64_t to = INT64_MAX);

/// For appending: one writer at a time (Store's lock). Not for two threads at once.
class Journal {
 public:
  /// Opens or creates; a torn last line is cut off. A run that goes on after step N passes `keep_to` = N: later lines
  /// are cut off, whole or damaged (all up to N were synced with its checkpoint). Crash-safe: written beside and
  /// renamed.
  explicit Journal(std::filesystem::path path, int64_t keep_to = INT64_MAX);
  ~Journal();
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&&) = delete;

  /// One write(2). `line` is an object with an integer `step` not below the last one; a number that JSON cannot hold
  /// (nan, inf) becomes null. Throws std::invalid_argument on another line, std::runtime_error where the disk refuses
  /// (then the file is as before).
  void append(const nlohmann::ordered_json& line);
  /// Makes what was appended survive a power cut.
  void sync();
  /// Drops every line with a later step: written beside, synced, renamed.
  void truncate_after(int64_t step);

  /// Of the last line; INT64_MIN in an empty journal.
  int64_t last_step() const { return last_step_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  void reopen();

  std::filesystem::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;
  int64_t last_step_ = INT64_MIN;
};

}  // namespace cairn::checkpoints
