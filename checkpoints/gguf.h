// GGUF, the container of ggml (its specification: docs/gguf.md of ggml), versions 2 and 3, little-endian: metadata by
// key, then tensors whose data begin at multiples of `general.alignment`. Files come from anywhere, so every count,
// length and offset is checked against the file before it is followed; each refusal names the file, the place and what
// was found.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoints/gguf_blocks.h"

namespace cairn::checkpoints {

inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr uint32_t kGgufVersion = 3;  // what is written; 2 is read too and says the same
inline constexpr uint64_t kGgufAlignment = 32;

/// Types of metadata, by their numbers on disk.
enum class GgufType : uint32_t { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

/// "uint8", "string", ...
std::string_view gguf_type_name(GgufType type);

/// A malformed file, or metadata of another type than asked for.
struct GgufError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// One value of the metadata, in the file's mapping. The readers throw GgufError naming file, key and what was
/// expected.
class GgufValue {
 public:
  GgufType type() const { return type_; }
  GgufType element_type() const { return element_; }  // of an array
  uint64_t count() const { return count_; }           // elements of an array

  int64_t integer() const;  // any integer type that fits
  double number() const;    // any integer or floating type
  bool boolean() const;
  std::string text() const;
  // Of an array; one value counts as an array of one.
  std::vector<std::string> texts() const;
  std::vector<int64_t> integers() const;
  std::vector<double> numbers() const;
  std::vector<bool> booleans() const;

 private:
  friend class GgufParser;
  template <class T>
  std::vector<T> all(const char* expected, bool (*fits)(GgufType), T (*read)(GgufType, const uint8_t*)) const;
  [[noreturn]] void fail(const char* expected) const;

  std::string where_;  // "FILE: KEY"
  GgufType type_ = GgufType::U8, element_ = GgufType::U8;
  uint64_t count_ = 0;
  const uint8_t* data_ = nullptr;  // checked to lie in the file
};

struct GgufTensor {
  std::string name;
  const BlockType* type = nullptr;
  std::vector<int64_t> shape;  // row-major: the reverse of the file's order
  const uint8_t* data = nullptr;

  int64_t numel() const;
  uint64_t bytes() const { return static_cast<uint64_t>(numel() / type->elements * type->bytes); }
};

/// One file, memory-mapped read-only. What it hands out stays valid while it (or a copy) lives.
class Gguf {
 public:
  /// Throws GgufError on a malformed file, std::runtime_error where it cannot be opened.
  static Gguf open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  uint32_t version() const { return version_; }

  /// Keys in the file's order.
  const std::vector<std::string>& keys() const { return keys_; }
  /// Null where there is no such key.
  const GgufValue* find(const std::string& key) const;
  /// Throws GgufError where there is no such key.
  const GgufValue& at(const std::string& key) const;

  /// In the file's order.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* tensor(const std::string& name) const;

  /// The tensor's numbers as float32, tensor.numel() of them. Throws GgufError where its type is known by name alone.
  void read(const GgufTensor& tensor, float* to) const;

 private:
  friend class GgufParser;
  std::filesystem::path path_;
  std::shared_ptr<const void> mapping_;
  uint32_t version_ = 0;
  std::vector<std::string> keys_;
  std::unordered_map<std::string, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_of_;
};

/// A file called *.gguf, or one that begins as GGUF does.
bool is_gguf(const std::filesystem::path& path);

}  // namespace cairn::checkpoints
