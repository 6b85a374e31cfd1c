#include "trainer/data/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
[[noreturn]] void fail(const std::string& path, const char* what) {
  throw std::runtime_error(fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
}

constexpr const char* kWild = "*?[";

// The length of the set `[abc]`, `[a-z]` or `[!abc]` that `pattern` begins with, and whether `c` is of it; 0: no set,
// the bracket is a character like others. As in a shell `]` right after the bracket belongs to the set.
size_t match_set(std::string_view pattern, char c, bool& matches) {
  size_t i = 1;
  const bool negated = i < pattern.size() && (pattern[i] == '!' || pattern[i] == '^');
  if (negated) ++i;
  bool found = false;
  for (const size_t first = i; i < pattern.size(); ++i) {
    if (pattern[i] == ']' && i > first) {
      matches = found != negated && c != '/';
      return i + 1;
    }
    const bool range = i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']';
    const auto low = static_cast<unsigned char>(pattern[i]), at = static_cast<unsigned char>(c);
    const auto high = range ? static_cast<unsigned char>(pattern[i + 2]) : low;
    if (low <= at && at <= high) found = true;
    if (range) i += 2;
  }
  return 0;
}

// Every file below `folder`, hidden ones left out.
void walk(const fs::path& folder, std::vector<std::string>& paths) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, fs::directory_options::follow_directory_symlink, error), end;
       !error && it != end; it.increment(error)) {
    const bool hidden = it->path().filename().native().front() == '.';
    if (hidden && it->is_directory()) it.disable_recursion_pending();
    if (!hidden && it->is_regular_file()) paths.push_back(it->path().native());
  }
  if (error) throw std::runtime_error(fmt::format("{}: cannot read the folder: {}", folder.native(), error.message()));
}

// What a glob can match lies below its part before the first wildcard.
void collect(const std::string& pattern, bool folders, std::vector<std::string>& paths) {
  const std::string fixed = pattern.substr(0, pattern.find_first_of(kWild));
  const auto slash = fixed.rfind('/');
  const fs::path base = slash == std::string::npos ? "." : slash == 0 ? "/" : fixed.substr(0, slash);
  const size_t depth = std::count(pattern.begin() + static_cast<std::ptrdiff_t>(fixed.size()), pattern.end(), '/');
  const bool deep = pattern.find("**") != std::string::npos;
  std::error_code error;
  for (fs::recursive_directory_iterator it(base, fs::directory_options::follow_directory_symlink, error), end;
       !error && it != end; it.increment(error)) {
    if (it->is_directory() && !deep && static_cast<size_t>(it.depth()) >= depth) it.disable_recursion_pending();
    std::string path = it->path().native();
    if (slash == std::string::npos && path.starts_with("./")) path.erase(0, 2);
    if (matches_glob(path, pattern) && (folders || it->is_regular_file())) paths.push_back(path);
  }
}
}  // namespace

FileStamp stamp(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) fail(path, "cannot be read");
  return {path, info.st_size, int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

bool has_glob(std::string_view pattern) { return pattern.find_first_of(kWild) != std::string_view::npos; }

bool ends_with_any(std::string_view text, const std::vector<std::string>& endings) {
  return std::any_of(endings.begin(), endings.end(), [&](const auto& e) { return text.ends_with(e); });
}

bool matches_glob(std::string_view path, std::string_view pattern) {
  if (pattern.empty()) return path.empty();
  if (pattern.starts_with("**")) {
    auto rest = pattern.substr(2);
    if (rest.starts_with('/') && matches_glob(path, rest.substr(1))) return true;  // `**/` matches no folder too
    for (size_t i = 0; i <= path.size(); ++i) {
      if (matches_glob(path.substr(i), rest)) return true;
    }
    return false;
  }
  if (pattern[0] == '*') {
    for (size_t i = 0;; ++i) {
      if (matches_glob(path.substr(i), pattern.substr(1))) return true;
      if (i == path.size() || path[i] == '/') return false;
    }
  }
  if (path.empty()) return false;
  if (pattern[0] == '[') {
    bool matches = false;
    if (const size_t length = match_set(pattern, path[0], matches); length > 0)
      return matches && matches_glob(path.substr(1), pattern.substr(length));
  }
  if (pattern[0] == '?' ? path[0] == '/' : path[0] != pattern[0]) return false;
  return matches_glob(path.substr(1), pattern.substr(1));
}

std::vector<FileStamp> list_files(const std::string& pattern, const std::vector<std::string>& endings) {
  std::vector<std::string> paths;
  if (fs::is_directory(pattern)) {
    walk(pattern, paths);
    std::erase_if(paths, [&](const auto& path) { return !ends_with_any(path, endings); });
    if (paths.empty()) {
      throw std::runtime_error(fmt::format("{}: the folder holds no file that ends with {}; name others with a glob",
                                           pattern, fmt::join(endings, ", ")));
    }
  } else if (!fs::exists(pattern) && has_glob(pattern)) {
    collect(pattern, false, paths);
    if (paths.empty()) throw std::runtime_error(fmt::format("{}: no file matches", pattern));
  } else {
    paths.push_back(pattern);
  }
  std::sort(paths.begin(), paths.end());
  std::vector<FileStamp> files;
  for (const auto& path : paths) {
    files.push_back(stamp(path));
    if (files.back().size == 0) throw std::runtime_error(fmt::format("{}: the file is empty", path));
  }
  return files;
}

std::vector<std::string> list_paths(const std::string& pattern) {
  if (fs::exists(pattern) || !has_glob(pattern)) return {pattern};
  std::vector<std::string> paths;
  collect(pattern, true, paths);
  if (paths.empty()) throw std::runtime_error(fmt::format("{}: nothing matches", pattern));
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::string read_whole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path, "cannot be read");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (in.bad()) fail(path, "cannot be read");
  return text;
}

void sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::fsync(fd) != 0) fail(path, "cannot be synced to the disk");
  ::close(fd);
}

void write_whole(const std::string& path, std::string_view text) {
  const std::string beside = fmt::format("{}.tmp{}", path, ::getpid());
  {
    std::ofstream out(beside, std::ios::binary | std::ios::trunc);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    if (!out.flush()) {
      const int error = errno;
      std::error_code ignored;
      fs::remove(beside, ignored);
      errno = error;
      fail(path, "cannot be written");
    }
  }
  sync_path(beside);
  fs::rename(beside, path);
  sync_path(fs::absolute(path).parent_path().native());
}

}  // namespace cairn::data
