// A folder of files for one test, and an encoding that needs no tokenizer: ids are bytes, EOS is 256.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/data/encoding.h"
#include "trainer/data/files.h"
#include "trainer/data/source.h"

namespace cairn::data {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "cairn_data_XXXXXX").native();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, std::string_view bytes) const {
    const std::string path = *this / name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline Encoding byte_encoding(int64_t vocab_size = 257) {
  Encoding encoding;
  encoding.encode = [](std::string_view text, std::vector<int32_t>& ids) {
    for (const unsigned char c : text) ids.push_back(c);
  };
  encoding.decode = [](const std::vector<int32_t>& ids) {
    std::string text;
    for (const int32_t id : ids) text += id == 256 ? '|' : static_cast<char>(id);
    return text;
  };
  encoding.vocab_size = vocab_size;
  encoding.eos = 256;
  encoding.digest = "bytes";
  return encoding;
}

inline SourceOptions text_source(const std::string& path) {
  SourceOptions source;
  source.text = path;
  return source;
}
inline SourceOptions jsonl_source(const std::string& path, const std::string& field = "text") {
  SourceOptions source;
  source.jsonl = path;
  source.field = field;
  return source;
}
inline SourceOptions shard_source(const std::string& path, const std::string& dtype = "") {
  SourceOptions source;
  source.shards = path;
  source.dtype = dtype;
  return source;
}

inline std::string gzip(const std::string& text) {
  z_stream z{};
  deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&z, text.size()) + 64, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

inline std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// The message of what `run` throws; fails the test where it does not throw.
inline std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an error";
  return "";
}

// Each of `parts` occurs in the message that `run` throws.
inline void expect_error(const std::function<void()>& run, const std::vector<std::string>& parts) {
  const std::string message = message_of(run);
  for (const auto& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
}

}  // namespace cairn::data
