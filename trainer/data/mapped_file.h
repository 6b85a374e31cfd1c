// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace cairn::data {

class MappedFile {
 public:
  // Throws std::runtime_error naming the path where it cannot be opened or is empty.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace cairn::data
