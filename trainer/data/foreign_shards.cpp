#include "trainer/data/foreign_shards.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string_view>

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
constexpr std::string_view kNpyMagic = "\x93NUMPY";
constexpr std::string_view kMegatronMagic("MMIDIDX\0\0", 9);

[[noreturn]] void fail(const std::string& path, int64_t offset, const std::string& what) {
  throw std::runtime_error(fmt::format("{}: byte {}: {}", path, offset, what));
}

// Little-endian numbers of a file, with its bounds.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file, int64_t offset = 0) : file_(file), offset_(offset) {}
  int64_t offset() const { return offset_; }
  std::string_view bytes(int64_t size) {
    if (size < 0 || offset_ + size > static_cast<int64_t>(file_.size())) {
      fail(file_.path(), static_cast<int64_t>(file_.size()),
           fmt::format("cut short: {} bytes are expected from byte {}", size, offset_));
    }
    const auto* begin = reinterpret_cast<const char*>(file_.data()) + offset_;
    offset_ += size;
    return {begin, static_cast<size_t>(size)};
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }

 private:
  const MappedFile& file_;
  int64_t offset_;
};

// The text after 'key': in the header's Python dictionary.
std::string_view after_key(std::string_view header, std::string_view key, const std::string& path) {
  const auto found = header.find(fmt::format("'{}'", key));
  if (found == header.npos) fail(path, 10, fmt::format("the header has no '{}'", key));
  header.remove_prefix(header.find(':', found) + 1);
  header.remove_prefix(std::min(header.find_first_not_of(' '), header.size()));
  return header;
}

struct NpyType {
  std::string_view name;
  TokenType type;
};
constexpr std::array<NpyType, 7> kNpyTypes = {{{"'|u1'", TokenType::uint8},
                                               {"'<u2'", TokenType::uint16},
                                               {"'<u4'", TokenType::uint32},
                                               {"'<i2'", TokenType::int16},
                                               {"'<i4'", TokenType::int32},
                                               {"'<i8'", TokenType::int64},
                                               {"'<u8'", TokenType::int64}}};

// Codes of the index's data type; 6 and 7 are floats.
struct MegatronType {
  int code;
  TokenType type;
};
constexpr std::array<MegatronType, 5> kMegatronTypes = {{{1, TokenType::uint8},
                                                         {3, TokenType::int16},
                                                         {4, TokenType::int32},
                                                         {5, TokenType::int64},
                                                         {8, TokenType::uint16}}};

void expect_tokens(const TokenFile& ids) {
  const auto found = static_cast<int64_t>(ids.file->size());
  // Divided, not multiplied: a damaged header may say any number.
  if (ids.tokens < 0 || ids.tokens > (found - ids.begin) / size_of(ids.type)) {
    __extension__ using Wide = __int128;
    fail(ids.file->path(), found,
         fmt::format("cut short: {} tokens of {} end at byte {}", ids.tokens, name_of(ids.type),
                     static_cast<Wide>(ids.tokens) * size_of(ids.type) + ids.begin));
  }
  if (ids.tokens == 0) fail(ids.file->path(), ids.begin, "holds no tokens");
}

bool has_magic(const std::string& path, std::string_view magic) {
  const auto file = MappedFile::open(path);
  return file->size() >= magic.size() && std::memcmp(file->data(), magic.data(), magic.size()) == 0;
}
}  // namespace

ForeignTokens open_npy(const std::string& path) {
  const auto file = MappedFile::open(path);
  Cursor cursor(*file);
  if (cursor.bytes(static_cast<int64_t>(kNpyMagic.size())) != kNpyMagic) fail(path, 0, "not a .npy file");
  const int major = cursor.number<uint8_t>();
  cursor.number<uint8_t>();
  const int64_t length = major == 1 ? cursor.number<uint16_t>() : cursor.number<uint32_t>();
  const std::string_view header = cursor.bytes(length);

  ForeignTokens out{{file, cursor.offset(), TokenType::uint16, 1}, {}, {path}};
  const auto descr = after_key(header, "descr", path);
  const NpyType* row = nullptr;
  for (const auto& candidate : kNpyTypes) {
    if (descr.starts_with(candidate.name)) row = &candidate;
  }
  if (row == nullptr) {
    fail(path, 10,
         fmt::format("descr: {} is not an integer type for token ids; expected |u1, <u2, <u4, <i2, <i4, <i8 or <u8",
                     descr.substr(0, descr.find(','))));
  }
  out.ids.type = row->type;
  auto shape = after_key(header, "shape", path);
  if (!shape.starts_with('(')) fail(path, 10, "shape: expected a tuple");
  shape = shape.substr(1, shape.find(')') - 1);
  int64_t dimensions = 0;
  for (size_t i = 0; i < shape.size();) {
    const auto digits = shape.find_first_of("0123456789", i);
    if (digits == shape.npos) break;
    const auto end = std::min(shape.find_first_not_of("0123456789", digits), shape.size());
    int64_t extent = 0;
    const auto parsed = std::from_chars(shape.data() + digits, shape.data() + end, extent);
    if (parsed.ec != std::errc() || __builtin_mul_overflow(out.ids.tokens, extent, &out.ids.tokens)) {
      fail(path, shape.data() - reinterpret_cast<const char*>(file->data()),
           fmt::format("shape: ({}) is more than a file can hold; this one has {} bytes", shape, file->size()));
    }
    ++dimensions;
    i = end;
  }
  if (dimensions > 1 && !after_key(header, "fortran_order", path).starts_with("False")) {
    fail(path, 10, "the array is in Fortran order; save it with numpy.ascontiguousarray");
  }
  expect_tokens(out.ids);
  return out;
}

ForeignTokens open_megatron(const std::string& prefix) {
  const std::string index_path = prefix + ".idx";
  const auto index = MappedFile::open(index_path);
  Cursor cursor(*index);
  if (cursor.bytes(static_cast<int64_t>(kMegatronMagic.size())) != kMegatronMagic) {
    fail(index_path, 0, "not a Megatron index: expected MMIDIDX");
  }
  const auto version = cursor.number<uint64_t>();
  if (version != 1) fail(index_path, 9, fmt::format("version {}; 1 is supported", version));
  const int code = cursor.number<uint8_t>();
  const MegatronType* row = nullptr;
  for (const auto& candidate : kMegatronTypes) {
    if (candidate.code == code) row = &candidate;
  }
  if (row == nullptr) fail(index_path, 17, fmt::format("data type {}: not an integer type for token ids", code));
  const auto sequences = cursor.number<uint64_t>(), boundaries = cursor.number<uint64_t>();
  if (sequences == 0 || sequences > index->size() || boundaries > index->size()) {
    fail(index_path, 18, fmt::format("{} sequences and {} document boundaries cannot be", sequences, boundaries));
  }
  const auto lengths = cursor.bytes(static_cast<int64_t>(sequences) * 4);
  const int64_t pointers_at = cursor.offset();
  const auto pointers = cursor.bytes(static_cast<int64_t>(sequences) * 8);
  const int64_t documents_at = cursor.offset();
  const auto documents = cursor.bytes(static_cast<int64_t>(boundaries) * 8);

  ForeignTokens out{{MappedFile::open(prefix + ".bin"), 0, row->type, 0}, {}, {index_path, prefix + ".bin"}};
  std::vector<uint64_t> ends = {0};  // tokens before sequence i
  for (uint64_t i = 0; i < sequences; ++i) {
    int32_t length;
    int64_t pointer;
    std::memcpy(&length, lengths.data() + i * 4, 4);
    std::memcpy(&pointer, pointers.data() + i * 8, 8);
    if (length < 0 || pointer != static_cast<int64_t>(ends.back()) * size_of(row->type)) {
      fail(index_path, pointers_at + static_cast<int64_t>(i) * 8,
           fmt::format("sequence {} begins at byte {} of the .bin and has {} tokens; expected to follow the one before "
                       "at byte {}",
                       i, pointer, length, ends.back() * size_of(row->type)));
    }
    ends.push_back(ends.back() + static_cast<uint64_t>(length));
  }
  out.ids.tokens = static_cast<int64_t>(ends.back());
  for (uint64_t i = 1; i < boundaries; ++i) {  // the first is 0
    int64_t sequence;
    std::memcpy(&sequence, documents.data() + i * 8, 8);
    if (sequence < 0 || static_cast<uint64_t>(sequence) > sequences ||
        (!out.ends.empty() && ends[sequence] < out.ends.back())) {
      fail(index_path, documents_at + static_cast<int64_t>(i) * 8,
           fmt::format("document {} ends before sequence {} of {}", i - 1, sequence, sequences));
    }
    out.ends.push_back(ends[sequence]);
  }
  if (out.ends.empty() || out.ends.back() != ends.back()) out.ends.push_back(ends.back());
  expect_tokens(out.ids);
  return out;
}

ForeignTokens open_memmap(const std::string& path, TokenType type) {
  const auto file = MappedFile::open(path);
  const auto bytes = static_cast<int64_t>(file->size());
  if (bytes % size_of(type) != 0) {
    fail(path, bytes,
         fmt::format("cut short, or not of {}: {} bytes are no whole number of tokens of {} bytes", name_of(type),
                     bytes, size_of(type)));
  }
  return {{file, 0, type, bytes / size_of(type)}, {}, {path}};
}

ForeignTokens open_foreign(const std::string& path, const std::string& dtype) {
  if (!dtype.empty()) {
    if (has_magic(path, kNpyMagic)) {
      throw std::invalid_argument(
          fmt::format("{}: dtype: {} is for files without a header; this one has one, leave dtype out", path, dtype));
    }
    return open_memmap(path, token_type(dtype));
  }
  std::string prefix = path;
  if (path.ends_with(".bin") || path.ends_with(".idx")) prefix = path.substr(0, path.size() - 4);
  if (fs::exists(prefix + ".idx")) return open_megatron(prefix);
  if (!fs::exists(path)) {
    throw std::runtime_error(
        fmt::format("{}: not there (looked for a folder with index.json, a file, and {}.idx)", path, prefix));
  }
  if (fs::is_directory(path))
    throw std::runtime_error(fmt::format("{}: the folder holds no index.json; it is no finished shard", path));
  if (has_magic(path, kNpyMagic)) return open_npy(path);
  throw std::runtime_error(
      fmt::format("{}: byte 0: no header says what the tokens are; for ids alone (OLMo's files) give "
                  "dtype: uint16 or uint32",
                  path));
}

}  // namespace cairn::data
