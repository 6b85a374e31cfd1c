#include "checkpoints/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>

#include "checkpoints/mapping.h"
#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

struct TypeRow {
  std::string_view name;
  uint32_t bytes;  // 0: of no fixed size
};
// In the order of the enumeration.
constexpr std::array<TypeRow, 13> kValueTypes = {{{"uint8", 1},
                                                  {"int8", 1},
                                                  {"uint16", 2},
                                                  {"int16", 2},
                                                  {"uint32", 4},
                                                  {"int32", 4},
                                                  {"float32", 4},
                                                  {"bool", 1},
                                                  {"string", 0},
                                                  {"array", 0},
                                                  {"uint64", 8},
                                                  {"int64", 8},
                                                  {"float64", 8}}};
constexpr int kMaxDepth = 4;  // of arrays in arrays
constexpr uint32_t kMaxDims = 4;
// The fewest bytes that an entry takes: what a count can be checked against before anything is read.
constexpr uint64_t kLeastValue = 8 + 4 + 1, kLeastTensor = 8 + 4 + 4 + 8;

uint32_t width(GgufType type) { return kValueTypes[static_cast<size_t>(type)].bytes; }

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

bool is_integer(GgufType type) {
  return type != GgufType::F32 && type != GgufType::F64 && type != GgufType::BOOL && type != GgufType::STRING &&
         type != GgufType::ARRAY;
}
bool is_number(GgufType type) { return is_integer(type) || type == GgufType::F32 || type == GgufType::F64; }
bool is_bool(GgufType type) { return type == GgufType::BOOL; }

template <class T>
T read_number(GgufType type, const uint8_t* p) {
  switch (type) {
    case GgufType::U8:
      return static_cast<T>(*p);
    case GgufType::I8:
      return static_cast<T>(load<int8_t>(p));
    case GgufType::U16:
      return static_cast<T>(load<uint16_t>(p));
    case GgufType::I16:
      return static_cast<T>(load<int16_t>(p));
    case GgufType::U32:
      return static_cast<T>(load<uint32_t>(p));
    case GgufType::I32:
      return static_cast<T>(load<int32_t>(p));
    case GgufType::U64:
      return static_cast<T>(load<uint64_t>(p));
    case GgufType::I64:
      return static_cast<T>(load<int64_t>(p));
    case GgufType::F32:
      return static_cast<T>(load<float>(p));
    case GgufType::F64:
      return static_cast<T>(load<double>(p));
    default:
      return T{};
  }
}

}  // namespace

std::string_view gguf_type_name(GgufType type) { return kValueTypes[static_cast<size_t>(type)].name; }

// ---- values ----

void GgufValue::fail(const char* expected) const {
  throw GgufError(fmt::format("{}: found {}, expected {}", where_,
                              type_ == GgufType::ARRAY
                                  ? fmt::format("an array of {} values of {}", count_, gguf_type_name(element_))
                                  : fmt::format("a value of {}", gguf_type_name(type_)),
                              expected));
}

int64_t GgufValue::integer() const {
  if (!is_integer(type_)) fail("an integer");
  if (type_ == GgufType::U64 && load<uint64_t>(data_) > INT64_MAX) fail("an integer below 2^63");
  return read_number<int64_t>(type_, data_);
}

double GgufValue::number() const {
  if (!is_number(type_)) fail("a number");
  return read_number<double>(type_, data_);
}

bool GgufValue::boolean() const {
  if (type_ != GgufType::BOOL) fail("true or false");
  return *data_ != 0;
}

std::string GgufValue::text() const {
  if (type_ != GgufType::STRING) fail("a string");
  return {reinterpret_cast<const char*>(data_) + 8, load<uint64_t>(data_)};
}

std::vector<std::string> GgufValue::texts() const {
  if (type_ == GgufType::STRING) return {text()};
  if (type_ != GgufType::ARRAY || element_ != GgufType::STRING) fail("an array of strings");
  std::vector<std::string> all;
  all.reserve(count_);
  const uint8_t* p = data_;
  for (uint64_t i = 0; i < count_; ++i) {
    const uint64_t length = load<uint64_t>(p);
    all.emplace_back(reinterpret_cast<const char*>(p) + 8, length);
    p += 8 + length;
  }
  return all;
}

template <class T>
std::vector<T> GgufValue::all(const char* expected, bool (*fits)(GgufType), T (*read)(GgufType, const uint8_t*)) const {
  const bool array = type_ == GgufType::ARRAY;
  const GgufType type = array ? element_ : type_;
  if (!fits(type)) fail(expected);
  std::vector<T> values;
  for (uint64_t i = 0; i < (array ? count_ : 1); ++i) values.push_back(read(type, data_ + i * width(type)));
  return values;
}

std::vector<int64_t> GgufValue::integers() const {
  return all<int64_t>("an array of integers", is_integer, read_number<int64_t>);
}

std::vector<double> GgufValue::numbers() const {
  return all<double>("an array of numbers", is_number, read_number<double>);
}

std::vector<bool> GgufValue::booleans() const {
  return all<bool>("an array of true and false", is_bool, [](GgufType, const uint8_t* p) { return *p != 0; });
}

int64_t GgufTensor::numel() const {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

// ---- the file ----

class GgufParser {
 public:
  GgufParser(Gguf& file, const Mapping& mapping)
      : file_(file),
        begin_(static_cast<const uint8_t*>(mapping.data.get())),
        end_(begin_ + mapping.size),
        at_(begin_),
        what_("the header") {}

  void run() {
    const auto [values, tensors] = read_header();
    for (uint64_t i = 0; i < values; ++i) read_entry(i);
    uint64_t alignment = kGgufAlignment;
    if (const GgufValue* value = file_.find("general.alignment")) {
      const int64_t found = value->integer();
      if (found <= 0 || !std::has_single_bit(static_cast<uint64_t>(found)))
        fail("general.alignment is {}, expected a power of two", found);
      alignment = static_cast<uint64_t>(found);
    }
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < tensors; ++i) offsets.push_back(read_tensor(i, alignment));
    place(offsets, alignment);
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
    throw GgufError(fmt::format("{}: {}", file_.path_.string(), fmt::format(format, std::forward<Args>(args)...)));
  }

  uint64_t left() const { return static_cast<uint64_t>(end_ - at_); }

  const uint8_t* take(uint64_t bytes) {
    if (bytes > left())
      fail("the file ends inside {}: {} bytes are needed at byte {}, {} are left (truncated)", what_, bytes,
           at_ - begin_, left());
    const uint8_t* from = at_;
    at_ += bytes;
    return from;
  }
  template <class T>
  T take() {
    return load<T>(take(sizeof(T)));
  }

  std::string_view take_string() {
    const uint64_t length = take<uint64_t>();
    return {reinterpret_cast<const char*>(take(length)), length};
  }

  // A key or a tensor's name, which messages show.
  std::string take_name(const char* of, uint64_t index) {
    what_ = fmt::format("the name of {} {}", of, index);
    const std::string_view name = take_string();
    if (name.empty()) fail("{} {} has an empty name", of, index);
    if (name.size() > 65535) fail("the name of {} {} has {} bytes, at most 65535 are allowed", of, index, name.size());
    if (utf8_error(name) < name.size()) fail("the name of {} {} is not UTF-8", of, index);
    return std::string(name);
  }

  std::pair<uint64_t, uint64_t> read_header() {
    if (left() < 4 || std::memcmp(at_, kGgufMagic.data(), 4) != 0) {
      fail("is no GGUF file: it begins with {}, expected 'GGUF'",
           left() < 4 ? fmt::format("{} bytes", left())
                      : fmt::format("bytes {:02x} {:02x} {:02x} {:02x}", at_[0], at_[1], at_[2], at_[3]));
    }
    take(4);
    const auto version = take<uint32_t>();
    if (version != 0 && (version & 0xFFFF) == 0)
      fail("is big-endian (version {}); little-endian files alone are read", __builtin_bswap32(version));
    if (version < 2 || version > kGgufVersion)
      fail("is GGUF version {}; versions 2 and {} are read", version, kGgufVersion);
    file_.version_ = version;
    const auto tensors = take<uint64_t>(), values = take<uint64_t>();
    if (values > left() / kLeastValue)
      fail("says that it has {} metadata entries, for which its {} bytes are too few", values, end_ - begin_);
    if (tensors > left() / kLeastTensor)
      fail("says that it has {} tensors, for which its {} bytes are too few", tensors, end_ - begin_);
    return {values, tensors};
  }

  GgufType take_type() {
    const auto type = take<uint32_t>();
    if (type >= kValueTypes.size()) fail("{} has type {}, expected 0 to {}", what_, type, kValueTypes.size() - 1);
    return static_cast<GgufType>(type);
  }

  // Walks over a value of the type, checking it.
  void skip(GgufType type, int depth) {
    if (type == GgufType::STRING) {
      take_string();
    } else if (type == GgufType::ARRAY) {
      if (depth == kMaxDepth) fail("{} holds arrays more than {} deep", what_, kMaxDepth);
      const GgufType element = take_type();
      const auto count = take<uint64_t>();
      skip_elements(element, count, depth + 1);
    } else {
      skip_elements(type, 1, depth);
    }
  }

  void skip_elements(GgufType type, uint64_t count, int depth) {
    const uint64_t each = type == GgufType::STRING ? 8 : type == GgufType::ARRAY ? 12 : width(type);
    if (count > left() / each)
      fail("the file ends inside {}: {} values of {} are more than its last {} bytes hold", what_, count,
           gguf_type_name(type), left());
    if (type == GgufType::STRING || type == GgufType::ARRAY) {
      for (uint64_t i = 0; i < count; ++i) skip(type, depth);
      return;
    }
    const uint8_t* values = take(count * each);
    if (type != GgufType::BOOL) return;
    const uint8_t* wrong = std::find_if(values, values + count, [](uint8_t b) { return b > 1; });
    if (wrong != values + count) fail("{} has a truth value of {}, expected 0 or 1", what_, *wrong);
  }

  void read_entry(uint64_t index) {
    const std::string key = take_name("metadata entry", index);
    what_ = fmt::format("metadata '{}'", key);
    GgufValue value;
    value.where_ = fmt::format("{}: {}", file_.path_.string(), key);
    value.type_ = take_type();
    value.data_ = at_;
    if (value.type_ == GgufType::ARRAY) {
      value.element_ = take_type();
      value.count_ = take<uint64_t>();
      value.data_ = at_;
      skip_elements(value.element_, value.count_, 1);
    } else {
      skip(value.type_, 0);
    }
    if (!file_.values_.emplace(key, std::move(value)).second) fail("metadata '{}' is given twice", key);
    file_.keys_.push_back(key);
  }

  uint64_t read_tensor(uint64_t index, uint64_t alignment) {
    GgufTensor tensor;
    tensor.name = take_name("tensor", index);
    what_ = fmt::format("the description of tensor '{}'", tensor.name);
    const auto dims = take<uint32_t>();
    if (dims > kMaxDims) fail("tensor '{}' has {} dimensions, at most {} are allowed", tensor.name, dims, kMaxDims);
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
      const auto extent = take<uint64_t>();
      if (extent == 0) fail("tensor '{}': dimension {} has no elements", tensor.name, d);
      if (extent > INT64_MAX || __builtin_mul_overflow(elements, extent, &elements) || elements > INT64_MAX / 64)
        fail("tensor '{}': extent {} of dimension {} makes it larger than any file", tensor.name, extent, d);
      tensor.shape.push_back(static_cast<int64_t>(extent));
    }
    const auto type = take<uint32_t>();
    tensor.type = block_type(type);
    if (!tensor.type) fail("tensor '{}' has type {}, which is none of ggml's", tensor.name, type);
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.front();
    if (row % tensor.type->elements)
      fail("tensor '{}': rows of {} elements are no whole number of {}'s blocks of {}", tensor.name, row,
           tensor.type->name, tensor.type->elements);
    std::reverse(tensor.shape.begin(), tensor.shape.end());
    const auto offset = take<uint64_t>();
    if (offset % alignment)
      fail("tensor '{}' begins at offset {}, expected a multiple of the alignment {}", tensor.name, offset, alignment);
    if (!file_.tensor_of_.emplace(tensor.name, file_.tensors_.size()).second)
      fail("tensor '{}' is given twice", tensor.name);
    file_.tensors_.push_back(std::move(tensor));
    return offset;
  }

  // Every tensor inside the data, none over another.
  void place(const std::vector<uint64_t>& offsets, uint64_t alignment) {
    if (offsets.empty()) return;
    const uint64_t header = static_cast<uint64_t>(at_ - begin_), size = static_cast<uint64_t>(end_ - begin_);
    uint64_t start = 0;
    if (__builtin_add_overflow(header, alignment - 1, &start)) fail("general.alignment is {}", alignment);
    start -= start % alignment;
    const uint64_t bytes = start < size ? size - start : 0;
    std::vector<size_t> order(offsets.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
    const GgufTensor* before = nullptr;
    uint64_t before_end = 0;
    for (const size_t i : order) {
      GgufTensor& tensor = file_.tensors_[i];
      if (offsets[i] > bytes || tensor.bytes() > bytes - offsets[i])
        fail("tensor '{}' ends beyond the file: {} bytes of {} at offset {}, {} bytes of data are there (truncated)",
             tensor.name, tensor.bytes(), tensor.type->name, offsets[i], bytes);
      if (before && offsets[i] < before_end)
        fail("tensor '{}' at offset {} overlaps tensor '{}', which ends at {}", tensor.name, offsets[i], before->name,
             before_end);
      tensor.data = begin_ + start + offsets[i];
      before = &tensor;
      before_end = offsets[i] + tensor.bytes();
    }
  }

  Gguf& file_;
  const uint8_t* const begin_;
  const uint8_t* const end_;
  const uint8_t* at_;
  std::string what_;
};

Gguf Gguf::open(const fs::path& path) {
  Gguf file;
  file.path_ = path;
  const Mapping mapping = map_file(path);
  file.mapping_ = mapping.data;
  GgufParser(file, mapping).run();
  return file;
}

const GgufValue* Gguf::find(const std::string& key) const {
  const auto at = values_.find(key);
  return at == values_.end() ? nullptr : &at->second;
}

const GgufValue& Gguf::at(const std::string& key) const {
  if (const GgufValue* value = find(key)) return *value;
  throw GgufError(fmt::format("{}: metadata '{}' is missing", path_.string(), key));
}

const GgufTensor* Gguf::tensor(const std::string& name) const {
  const auto at = tensor_of_.find(name);
  return at == tensor_of_.end() ? nullptr : &tensors_[at->second];
}

void Gguf::read(const GgufTensor& tensor, float* to) const {
  if (!tensor.type->to_float) {
    throw GgufError(fmt::format("{}: tensor '{}' is stored as {}, which is not read; there are {}", path_.string(),
                                tensor.name, tensor.type->name, readable_block_types()));
  }
  dequantize(*tensor.type, tensor.data, tensor.numel() / tensor.type->elements, to);
}

bool is_gguf(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return false;
  if (path.extension() == ".gguf") return true;
  std::ifstream in(path, std::ios::binary);
  char magic[4] = {};
  return in.read(magic, 4) && std::string_view(magic, 4) == kGgufMagic;
}

}  // namespace cairn::checkpoints
