#include "checkpoints/pieces.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {

namespace fs = std::filesystem;

bool TensorPiece::is_whole() const {
  int64_t n = 1;
  for (int64_t extent : whole) n *= extent;
  return first_index == 0 && view.numel() == n;
}

std::string piece_name(const std::string& name, int64_t first_index) {
  return fmt::format("{}[{}]", name, first_index);
}

std::pair<std::string, int64_t> whole_name(const std::string& name) {
  const size_t open = name.rfind('[');
  if (open == std::string::npos || !name.ends_with(']')) return {name, 0};
  int64_t first = 0;
  const char* last = name.data() + name.size() - 1;
  const auto [end, error] = std::from_chars(name.data() + open + 1, last, first);
  if (error != std::errc() || end != last || first < 0) return {name, 0};
  return {name.substr(0, open), first};
}

PiecedTensors PiecedTensors::open(const fs::path& stem) {
  const fs::path whole = stem.string() + ".safetensors", index = whole.string() + ".index.json";
  const bool several = !fs::exists(whole) && fs::exists(index);
  PiecedTensors tensors(ModelWeights::open(several ? index : whole));
  if (several) {
    const auto document = parse_strict(read_file(index));
    if (document.contains("pieces"))
      tensors.shapes_ = document.at("pieces").get<std::map<std::string, std::vector<int64_t>>>();
  }
  for (const std::string& stored : tensors.files_.names()) {
    const auto [name, first] = whole_name(stored);
    tensors.pieces_[name].emplace_back(first, stored);
  }
  for (auto& [name, pieces] : tensors.pieces_) {
    std::sort(pieces.begin(), pieces.end());
    int64_t next = 0;
    for (const auto& [first, stored] : pieces) {
      const TensorView& view = tensors.files_.get(stored);
      if (first != next || view.dtype != tensors.files_.get(pieces.front().second).dtype)
        throw std::runtime_error(
            fmt::format("{}: the pieces of '{}' do not make a tensor: '{}' begins at {} as {}, expected {} as {}",
                        stem.string(), name, stored, first, dtype_name(view.dtype), next,
                        dtype_name(tensors.files_.get(pieces.front().second).dtype)));
      next += view.numel();
    }
  }
  return tensors;
}

bool PiecedTensors::stored(const fs::path& stem) {
  return fs::exists(stem.string() + ".safetensors") || fs::exists(stem.string() + ".safetensors.index.json");
}

std::vector<std::string> PiecedTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, pieces] : pieces_) names.push_back(name);
  return names;
}

const std::vector<std::pair<int64_t, std::string>>& PiecedTensors::pieces(const std::string& name) const {
  const auto found = pieces_.find(name);
  if (found == pieces_.end()) files_.get(name);  // throws, with a near match
  return found->second;
}

DType PiecedTensors::dtype(const std::string& name) const { return files_.get(pieces(name).front().second).dtype; }

int64_t PiecedTensors::numel(const std::string& name) const {
  const auto& [first, stored] = pieces(name).back();
  return first + files_.get(stored).numel();
}

TensorView PiecedTensors::get(const std::string& name) {
  const auto& parts = pieces(name);
  if (parts.size() == 1 && parts.front().second == name) return files_.get(name);
  TensorView view{name, dtype(name), {numel(name)}, nullptr};
  std::unique_ptr<char[]>& memory = whole_[name];
  if (!memory) {
    memory = std::make_unique_for_overwrite<char[]>(view.bytes());
    read(name, 0, view.numel(), memory.get());
  }
  view.data = memory.get();
  if (const auto shape = shapes_.find(name); shape != shapes_.end()) {
    TensorView shaped = view;
    shaped.shape = shape->second;
    if (shaped.numel() != view.numel())
      throw std::runtime_error(fmt::format("{}: the pieces of '{}' have {} elements, its shape [{}] has {}",
                                           files_.files().front().path().parent_path().string(), name, view.numel(),
                                           fmt::join(shape->second, ", "), shaped.numel()));
    return shaped;
  }
  return view;
}

void PiecedTensors::read(const std::string& name, int64_t first, int64_t count, void* to) const {
  if (first < 0 || count < 0 || first + count > numel(name))
    throw std::runtime_error(fmt::format("{}: elements {} to {} of '{}' were asked for, {} are stored",
                                         files_.files().front().path().parent_path().string(), first, first + count,
                                         name, numel(name)));
  for (const auto& [begin, stored] : pieces(name)) {
    const TensorView& view = files_.get(stored);
    const int64_t from = std::max(first, begin), end = std::min(first + count, begin + view.numel());
    const auto width = static_cast<int64_t>(dtype_size(view.dtype));
    if (from < end)
      std::memcpy(static_cast<char*>(to) + (from - first) * width,
                  static_cast<const char*>(view.data) + (from - begin) * width, (end - from) * width);
  }
}

}  // namespace cairn::checkpoints
