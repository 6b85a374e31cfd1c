#include "trainer/data/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace cairn::data {

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info {};
  void* data = MAP_FAILED;
  int error = 0;
  if (fd < 0 || ::fstat(fd, &info) != 0) {
    error = errno;
  } else if (!S_ISREG(info.st_mode)) {
    error = EISDIR;
  } else if (info.st_size > 0) {
    data = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  if (fd >= 0) ::close(fd);
  if (error != 0) throw std::runtime_error(fmt::format("{}: cannot be read: {}", path, std::strerror(error)));
  if (info.st_size == 0) throw std::runtime_error(fmt::format("{}: the file is empty", path));
  file->data_ = static_cast<const std::byte*>(data);
  file->size_ = static_cast<size_t>(info.st_size);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace cairn::data
