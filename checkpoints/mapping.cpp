#include "checkpoints/mapping.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace cairn::checkpoints {

Mapping map_file(const std::filesystem::path& path) {
  const auto fail = [&](const char* doing) {
    throw std::runtime_error(fmt::format("cannot {} {}: {}", doing, path.string(), std::strerror(errno)));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open");
  struct stat info {};
  void* data = MAP_FAILED;
  const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const uint64_t size = regular ? info.st_size : 0;
  if (regular && size > 0) data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (!regular) throw std::runtime_error(fmt::format("{} is not a regular file", path.string()));
  if (size == 0) return {};
  errno = error;
  if (data == MAP_FAILED) fail("map");
  return {std::shared_ptr<const void>(data, [size](const void* p) { ::munmap(const_cast<void*>(p), size); }), size};
}

}  // namespace cairn::checkpoints
