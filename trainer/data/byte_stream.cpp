#include "trainer/data/byte_stream.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace cairn::data {
namespace {
[[noreturn]] void fail(const std::string& path, int64_t offset, const std::string& what) {
  throw std::runtime_error(fmt::format("{}: byte {}: {}", path, offset, what));
}

class PlainStream : public ByteStream {
 public:
  explicit PlainStream(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (file_ == nullptr) throw std::runtime_error(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  }
  ~PlainStream() override { std::fclose(file_); }
  size_t read(char* out, size_t size) override {
    const size_t got = std::fread(out, 1, size, file_);
    if (got == 0 && std::ferror(file_)) fail(path_, consumed_, std::strerror(errno));
    consumed_ += static_cast<int64_t>(got);
    return got;
  }
  int64_t consumed() const override { return consumed_; }

 private:
  std::string path_;
  std::FILE* file_;
  int64_t consumed_ = 0;
};

// What gzip and zstd share: a window of compressed bytes that is refilled.
class PackedStream : public ByteStream {
 public:
  explicit PackedStream(const std::string& path) : path_(path), file_(path), window_(1 << 16) {}
  int64_t consumed() const override { return file_.consumed() - static_cast<int64_t>(end_ - begin_); }

 protected:
  bool refill() {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = file_.read(window_.data(), window_.size());
    }
    return begin_ < end_;
  }
  std::string path_;
  PlainStream file_;
  std::vector<char> window_;
  size_t begin_ = 0, end_ = 0;
};

class GzipStream : public PackedStream {
 public:
  explicit GzipStream(const std::string& path) : PackedStream(path) {
    if (inflateInit2(&z_, 15 + 16) != Z_OK) throw std::runtime_error(fmt::format("{}: zlib cannot start", path));
  }
  ~GzipStream() override { inflateEnd(&z_); }
  size_t read(char* out, size_t size) override {
    z_.next_out = reinterpret_cast<Bytef*>(out);
    z_.avail_out = static_cast<uInt>(size);
    while (z_.avail_out == size) {
      if (!refill()) {
        if (inside_) fail(path_, consumed(), "the gzip stream is cut short: the file ends inside it");
        return 0;
      }
      if (!inside_) {  // another member may follow
        inflateReset(&z_);
        inside_ = true;
      }
      z_.next_in = reinterpret_cast<Bytef*>(window_.data() + begin_);
      z_.avail_in = static_cast<uInt>(end_ - begin_);
      const int status = inflate(&z_, Z_NO_FLUSH);
      begin_ = end_ - z_.avail_in;
      if (status == Z_STREAM_END) {
        inside_ = false;
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        fail(path_, consumed(), fmt::format("not a whole gzip stream: {}", z_.msg != nullptr ? z_.msg : "damaged"));
      }
    }
    return size - z_.avail_out;
  }

 private:
  z_stream z_{};
  bool inside_ = false;
};

class ZstdStream : public PackedStream {
 public:
  explicit ZstdStream(const std::string& path) : PackedStream(path), z_(ZSTD_createDStream()) {}
  ~ZstdStream() override { ZSTD_freeDStream(z_); }
  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      const bool more = refill();
      if (!more && !inside_) return 0;
      ZSTD_inBuffer input{window_.data() + begin_, end_ - begin_, 0};
      const size_t status = ZSTD_decompressStream(z_, &output, &input);
      begin_ += input.pos;
      if (ZSTD_isError(status)) {
        fail(path_, consumed(), fmt::format("not a whole zstd stream: {}", ZSTD_getErrorName(status)));
      }
      inside_ = status != 0;
      // Without input the decoder can only hand out what it still holds.
      if (!more && output.pos == 0) fail(path_, consumed(), "the zstd stream is cut short: the file ends inside it");
    }
    return output.pos;
  }

 private:
  ZSTD_DStream* z_;
  bool inside_ = false;
};
}  // namespace

std::unique_ptr<ByteStream> open_stream(const std::string& path) {
  if (path.ends_with(".gz") || path.ends_with(".dz")) return std::make_unique<GzipStream>(path);
  if (path.ends_with(".zst")) return std::make_unique<ZstdStream>(path);
  return std::make_unique<PlainStream>(path);
}

std::string without_compression(const std::string& path) {
  for (const char* ending : {".gz", ".zst"}) {
    if (path.ends_with(ending)) return path.substr(0, path.size() - std::strlen(ending));
  }
  return path;
}

}  // namespace cairn::data
