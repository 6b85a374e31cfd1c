// Reading and writing of one safetensors file. Rules: the official reader, safetensors/src/tensor.rs, version 0.8
// (SafeTensors::read_metadata and Metadata::validate), in its order.
#include "checkpoints/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "checkpoints/mapping.h"
#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr uint64_t kMaxHeader = 100'000'000;

// One file's header being read; `fail` names file and place.
class Header {
 public:
  Header(const fs::path& path, std::string_view text, uint64_t data_bytes)
      : path_(path), text_(text), data_bytes_(data_bytes) {}

  struct Entry {
    TensorView view;
    uint64_t begin, end;
  };

  // Entries in the order of the data, views without data.
  std::vector<Entry> read(Metadata& metadata) {
    const ordered_json header = parse();
    std::vector<Entry> entries;
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") {
        read_metadata(value, metadata);
      } else {
        entries.push_back(read_tensor(key, value));
      }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    validate(entries);
    return entries;
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(const char* kind, fmt::format_string<Args...> format, Args&&... args) {
    throw SafetensorsError(
        kind, fmt::format("{}: {}: {}", path_.string(), kind, fmt::format(format, std::forward<Args>(args)...)));
  }

  ordered_json parse() {
    if (const size_t at = utf8_error(text_); at < text_.size())
      fail("InvalidHeader", "the header is not UTF-8 at byte {} of the file", at + 8);
    ordered_json header;
    try {
      header = parse_strict(text_);
    } catch (const JsonError& e) {
      fail(e.duplicate ? "DuplicateKey" : "InvalidHeaderDeserialization", "header (bytes 8 to {}): {}",
           text_.size() + 8, e.what());
    }
    if (!header.is_object())
      fail("InvalidHeaderDeserialization", "the header is {} where an object is expected", header.type_name());
    return header;
  }

  void read_metadata(const ordered_json& value, Metadata& metadata) {
    if (value.is_null()) return;
    if (!value.is_object())
      fail("InvalidHeaderDeserialization", "__metadata__ is {} where an object of strings is expected",
           value.type_name());
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string())
        fail("InvalidHeaderDeserialization", "__metadata__ '{}' is {} where a string is expected", key,
             text.type_name());
      metadata[key] = text.get<std::string>();
    }
  }

  uint64_t number(const std::string& tensor, const char* field, const ordered_json& value) {
    if (!value.is_number_unsigned())
      fail("InvalidHeaderDeserialization", "tensor '{}': {} in {} is not an integer from 0 to 2^64 - 1", tensor,
           value.dump(), field);
    return value.get<uint64_t>();
  }

  Entry read_tensor(const std::string& name, const ordered_json& value) {
    if (!value.is_object())
      fail("InvalidHeaderDeserialization", "tensor '{}' is {} where an object is expected", name, value.type_name());
    for (const char* field : {"dtype", "shape", "data_offsets"})
      if (!value.contains(field)) fail("InvalidHeaderDeserialization", "tensor '{}' has no field '{}'", name, field);
    const auto& dtype = value["dtype"];
    const auto& shape = value["shape"];
    const auto& offsets = value["data_offsets"];
    if (!dtype.is_string()) fail("InvalidHeaderDeserialization", "tensor '{}': dtype is not a string", name);
    const auto type = dtype_from_name(dtype.get_ref<const std::string&>());
    if (!type)
      fail("InvalidHeaderDeserialization", "tensor '{}': dtype '{}' is not one that Cairn reads", name,
           dtype.get_ref<const std::string&>());
    if (!shape.is_array()) fail("InvalidHeaderDeserialization", "tensor '{}': shape is not an array", name);
    if (!offsets.is_array() || offsets.size() != 2)
      fail("InvalidHeaderDeserialization", "tensor '{}': data_offsets is not an array of two integers", name);
    Entry entry{
        {name, *type, {}, nullptr}, number(name, "data_offsets", offsets[0]), number(name, "data_offsets", offsets[1])};
    for (const auto& extent : shape) {
      const uint64_t n = number(name, "shape", extent);
      if (n > INT64_MAX) fail("ValidationOverflow", "tensor '{}': extent {} of its shape is beyond 2^63 - 1", name, n);
      entry.view.shape.push_back(static_cast<int64_t>(n));
    }
    return entry;
  }

  void validate(const std::vector<Entry>& entries) {
    uint64_t expected = 0;
    for (const Entry& e : entries) {
      if (e.begin != expected || e.end < e.begin) {
        const char* how = e.end < e.begin      ? "ends before it begins"
                          : e.begin < expected ? "overlaps the tensor before it"
                                               : "leaves a hole before it";
        fail("InvalidOffset", "tensor '{}' {}: data_offsets [{}, {}], begin {} expected", e.view.name, how, e.begin,
             e.end, expected);
      }
      expected = e.end;
      uint64_t n = 1, bits = 0;
      for (int64_t extent : e.view.shape)
        if (__builtin_mul_overflow(n, static_cast<uint64_t>(extent), &n))
          fail("ValidationOverflow", "tensor '{}': the product of its shape [{}] is beyond 2^64 - 1", e.view.name,
               fmt::join(e.view.shape, ", "));
      if (__builtin_mul_overflow(n, uint64_t{8} * dtype_size(e.view.dtype), &bits))
        fail("ValidationOverflow", "tensor '{}': {} elements of {} are more bits than 2^64 - 1", e.view.name, n,
             dtype_name(e.view.dtype));
      if (e.end - e.begin != bits / 8)
        fail("TensorInvalidInfo", "tensor '{}': {} of shape [{}] takes {} bytes, data_offsets [{}, {}] give {}",
             e.view.name, dtype_name(e.view.dtype), fmt::join(e.view.shape, ", "), bits / 8, e.begin, e.end,
             e.end - e.begin);
    }
    if (expected != data_bytes_)
      fail("MetadataIncompleteBuffer", "the header describes {} bytes of data, the file has {}{}", expected,
           data_bytes_, expected > data_bytes_ ? " (truncated)" : " (bytes after the last tensor)");
  }

  const fs::path& path_;
  std::string_view text_;
  uint64_t data_bytes_;
};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

Safetensors Safetensors::open(const fs::path& path) {
  const Mapping mapping = map_file(path);
  const auto fail = [&](const char* kind, const std::string& message) {
    throw SafetensorsError(kind, fmt::format("{}: {}: {}", path.string(), kind, message));
  };
  if (mapping.size < 8)
    fail("HeaderTooSmall", fmt::format("the file has {} bytes, its header length alone takes 8", mapping.size));
  const char* bytes = static_cast<const char*>(mapping.data.get());
  uint64_t length;
  std::memcpy(&length, bytes, 8);
  if (length > kMaxHeader)
    fail("HeaderTooLarge",
         fmt::format("bytes 0 to 7 give a header of {} bytes, at most {} are allowed", length, kMaxHeader));
  if (length > mapping.size - 8)
    fail("InvalidHeaderLength",
         fmt::format("bytes 0 to 7 give a header of {} bytes, the file has {} after them", length, mapping.size - 8));
  Safetensors file;
  file.path_ = path;
  const char* data = bytes + 8 + length;
  for (auto& entry : Header(path, {bytes + 8, length}, mapping.size - 8 - length).read(file.metadata_)) {
    entry.view.data = data + entry.begin;
    file.names_.push_back(entry.view.name);
    file.tensors_.emplace(entry.view.name, std::move(entry.view));
  }
  file.mapping_ = mapping.data;
  return file;
}

const TensorView& Safetensors::get(const std::string& name) const {
  if (const auto it = tensors_.find(name); it != tensors_.end()) return it->second;
  std::string near;
  size_t best = std::max<size_t>(name.size() / 2, 3);
  for (const std::string& other : names_)
    if (const size_t d = edit_distance(name, other); d < best) best = d, near = other;
  throw std::runtime_error(fmt::format("{} has no tensor '{}'{}", path_.string(), name,
                                       near.empty() ? "" : fmt::format(" (did you mean '{}'?)", near)));
}

void write_safetensors(FileWriter& file, std::span<const TensorView> tensors, const Metadata& metadata) {
  std::vector<const TensorView*> order;
  std::unordered_set<std::string_view> names;
  for (const TensorView& t : tensors) {
    if (t.name == "__metadata__")
      throw std::invalid_argument("a tensor cannot be named '__metadata__': safetensors reserves the name");
    if (!names.insert(t.name).second) throw std::invalid_argument(fmt::format("tensor '{}' is given twice", t.name));
    for (int64_t extent : t.shape)
      if (extent < 0)
        throw std::invalid_argument(fmt::format("tensor '{}': extent {} of its shape is negative", t.name, extent));
    if (t.data == nullptr && t.bytes() > 0) throw std::invalid_argument(fmt::format("tensor '{}' has no data", t.name));
    order.push_back(&t);
  }
  // Wider elements first: with a header of a multiple of 8 bytes every tensor is aligned to its element.
  std::stable_sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return dtype_size(a->dtype) > dtype_size(b->dtype);
  });
  ordered_json header = ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  auto& object = header.get_ref<ordered_json::object_t&>();
  uint64_t offset = 0;
  for (const TensorView* t : order) {
    object.emplace_back(t->name, ordered_json{{"dtype", dtype_name(t->dtype)},
                                              {"shape", t->shape},
                                              {"data_offsets", {offset, offset + t->bytes()}}});
    offset += t->bytes();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const ordered_json::exception&) {
    throw std::invalid_argument("a tensor name or a metadata string is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeader)
    throw std::invalid_argument(
        fmt::format("a header of {} bytes is beyond safetensors' {}: write shards", text.size(), kMaxHeader));
  const uint64_t length = text.size();
  file.write(&length, 8);
  file.write(text);
  for (const TensorView* t : order) file.write(t->data, t->bytes());
}

FileEntry write_safetensors(const fs::path& path, std::span<const TensorView> tensors, const Metadata& metadata) {
  const fs::path temporary = path.parent_path() / (".tmp-" + path.filename().string());
  FileWriter file(temporary);
  write_safetensors(file, tensors, metadata);
  FileEntry entry = file.finish();
  fs::rename(temporary, path);
  sync_folder(path.parent_path());
  entry.path = path.filename().string();
  return entry;
}

}  // namespace cairn::checkpoints
