// The bytes of a file, decompressed on the way where it ends with .gz, .dz (gzip) or .zst.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace cairn::data {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Up to `size` bytes; 0 at the end. Throws std::runtime_error with path and offset: cannot be read, damaged, cut
  // short.
  virtual size_t read(char* out, size_t size) = 0;
  // Bytes of the file itself read so far, for progress.
  virtual int64_t consumed() const = 0;
};

std::unique_ptr<ByteStream> open_stream(const std::string& path);

// "a.txt.gz" -> "a.txt".
std::string without_compression(const std::string& path);

}  // namespace cairn::data
