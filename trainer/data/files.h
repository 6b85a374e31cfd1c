// Files by path, folder or glob; whole files in and out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::data {

struct FileStamp {
  std::string path;  // as found
  int64_t size = 0, mtime_ns = 0;
};

// Throws std::runtime_error naming the path where it cannot be read.
FileStamp stamp(const std::string& path);

// The files that `pattern` names, in byte order of their paths: itself where it is a file; the files below it with one
// of the `endings` where it is a folder (hidden ones left out); else what matches as a glob: `*`, `?` and
// sets such as `[0-9a]` or `[!a]` inside a folder, `**/` across folders. Throws std::runtime_error where nothing is
// found, naming pattern and endings.
std::vector<FileStamp> list_files(const std::string& pattern, const std::vector<std::string>& endings);

// Like list_files, but a folder stands for itself (a shard is a folder).
std::vector<std::string> list_paths(const std::string& pattern);

bool matches_glob(std::string_view path, std::string_view pattern);
bool has_glob(std::string_view pattern);
bool ends_with_any(std::string_view text, const std::vector<std::string>& endings);

std::string read_whole(const std::string& path);
// Writes `text` to `path`, torn at no instant: beside it, fsync, rename, fsync of the folder.
void write_whole(const std::string& path, std::string_view text);
// fsync of a file or folder.
void sync_path(const std::string& path);

}  // namespace cairn::data
