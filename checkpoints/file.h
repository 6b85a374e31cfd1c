// Files written so that a crash or a full disk leaves nothing half done: large aligned writes, the digest of the bytes
// computed on the way, fsync before anything is renamed. Every error names the file, the offset and the system's
// reason.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace cairn::checkpoints {

/// One line of a manifest.
struct FileEntry {
  std::string path;  // relative to the folder, '/' between parts
  uint64_t size = 0;
  std::string xxh3;  // XXH3-128 of the bytes, 32 hexadecimal digits

  bool operator==(const FileEntry&) const = default;
};

/// A new file (an existing one is replaced). Bytes are gathered so that the disk sees writes of 8 MiB at multiples of
/// 8 MiB. A file that is not finished when the writer dies is removed.
class FileWriter {
 public:
  explicit FileWriter(std::filesystem::path path);
  ~FileWriter();
  FileWriter(FileWriter&&) noexcept;
  FileWriter& operator=(FileWriter&&) noexcept;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Writes what is left, fsyncs and closes. `entry.path` is the file's name alone.
  FileEntry finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes `text` beside `path`, fsyncs, renames over `path`, fsyncs the folder.
void replace_file(const std::filesystem::path& path, std::string_view text);

/// The whole file. Throws std::runtime_error naming it.
std::string read_file(const std::filesystem::path& path);

/// Size and XXH3-128 of a file's bytes; `entry.path` is the file's name alone.
FileEntry digest_file(const std::filesystem::path& path);

/// fsync of a folder: makes renames, creations and removals in it durable.
void sync_folder(const std::filesystem::path& folder);

}  // namespace cairn::checkpoints
