#include "checkpoints/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

constexpr size_t kWriteBytes = 8 << 20;
constexpr size_t kPage = 4096;

[[noreturn]] void fail(const char* doing, const fs::path& path, const std::string& more = {}) {
  const int error = errno;
  const char* advice = error == ENOSPC || error == EDQUOT  ? ": free space there or write elsewhere"
                       : error == EROFS || error == EACCES ? ": choose a folder that can be written"
                                                           : "";
  throw std::runtime_error(
      fmt::format("cannot {} {}{}: {}{}", doing, path.string(), more, std::strerror(error), advice));
}

std::string hex(XXH128_hash_t h) { return fmt::format("{:016x}{:016x}", h.high64, h.low64); }

// XXH3 state needs 64-byte alignment, which this allocator gives.
struct FreeHash {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};
using Hash = std::unique_ptr<XXH3_state_t, FreeHash>;

Hash new_hash() {
  Hash hash(XXH3_createState());
  XXH3_128bits_reset(hash.get());
  return hash;
}

struct FreeAligned {
  void operator()(char* p) const { std::free(p); }
};

}  // namespace

struct FileWriter::State {
  fs::path path;
  int fd = -1;
  uint64_t offset = 0;  // handed to the system
  size_t held = 0;      // bytes in `buffer`
  std::unique_ptr<char, FreeAligned> buffer;
  Hash hash = new_hash();

  ~State() {
    if (fd < 0) return;
    ::close(fd);
    ::unlink(path.c_str());
  }

  // The hash runs over a piece just before the system copies it, so memory is read once.
  void put(const char* data, size_t bytes) {
    XXH3_128bits_update(hash.get(), data, bytes);
    while (bytes > 0) {
      const ssize_t n = ::write(fd, data, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("write", path, fmt::format(" ({} bytes at offset {})", bytes, offset));
      data += n;
      bytes -= n;
      offset += n;
    }
  }
};

FileWriter::FileWriter(fs::path path) : state_(std::make_unique<State>()) {
  state_->path = std::move(path);
  state_->fd = ::open(state_->path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (state_->fd < 0) fail("create", state_->path);
}

FileWriter::~FileWriter() = default;
FileWriter::FileWriter(FileWriter&&) noexcept = default;
FileWriter& FileWriter::operator=(FileWriter&&) noexcept = default;

void FileWriter::write(const void* data, size_t bytes) {
  State& s = *state_;
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    if (s.held == 0 && bytes >= kWriteBytes) {  // the offset is a multiple of kWriteBytes here
      s.put(from, kWriteBytes);
      from += kWriteBytes;
      bytes -= kWriteBytes;
      continue;
    }
    if (!s.buffer) {
      s.buffer.reset(static_cast<char*>(std::aligned_alloc(kPage, kWriteBytes)));
      if (!s.buffer) throw std::bad_alloc();
    }
    const size_t n = std::min(bytes, kWriteBytes - s.held);
    std::memcpy(s.buffer.get() + s.held, from, n);
    s.held += n;
    from += n;
    bytes -= n;
    if (s.held == kWriteBytes) {
      s.put(s.buffer.get(), s.held);
      s.held = 0;
    }
  }
}

FileEntry FileWriter::finish() {
  State& s = *state_;
  if (s.held > 0) s.put(s.buffer.get(), std::exchange(s.held, 0));
  if (::fsync(s.fd) != 0) fail("sync", s.path);
  FileEntry entry{s.path.filename().string(), s.offset, hex(XXH3_128bits_digest(s.hash.get()))};
  if (::close(std::exchange(s.fd, -1)) != 0) {
    ::unlink(s.path.c_str());
    fail("close", s.path);
  }
  return entry;
}

void replace_file(const fs::path& path, std::string_view text) {
  const fs::path temporary = path.parent_path() / (".tmp-" + path.filename().string());
  FileWriter file(temporary);
  file.write(text);
  file.finish();
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("rename a file to", path);
  sync_folder(path.parent_path());
}

std::string read_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open", path);
  std::string text;
  struct stat info {};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) text.reserve(info.st_size + 1);
  for (;;) {
    const size_t old = text.size();
    text.resize(std::max<size_t>(text.capacity(), old + 4096));
    const ssize_t n = ::read(fd, text.data() + old, text.size() - old);
    text.resize(old + std::max<ssize_t>(n, 0));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      ::close(fd);
      errno = error;
      fail("read", path);
    }
    if (n == 0) break;
  }
  ::close(fd);
  return text;
}

FileEntry digest_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open", path);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  const Hash hash = new_hash();
  std::unique_ptr<char, FreeAligned> buffer(static_cast<char*>(std::aligned_alloc(kPage, 1 << 20)));
  uint64_t size = 0;
  for (;;) {
    const ssize_t n = ::read(fd, buffer.get(), 1 << 20);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      ::close(fd);
      errno = error;
      fail("read", path, fmt::format(" at offset {}", size));
    }
    if (n == 0) break;
    XXH3_128bits_update(hash.get(), buffer.get(), n);
    size += n;
  }
  ::close(fd);
  return {path.filename().string(), size, hex(XXH3_128bits_digest(hash.get()))};
}

void sync_folder(const fs::path& folder) {
  const fs::path path = folder.empty() ? fs::path(".") : folder;
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open the folder", path);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  errno = error;
  // Some network file systems do not sync folders and say so.
  if (result != 0 && error != EINVAL && error != ENOTSUP) fail("sync the folder", path);
}

}  // namespace cairn::checkpoints
