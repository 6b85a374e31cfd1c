// Weights in shards, as Hugging Face lays them out.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoints/safetensors.h"
#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::array<std::string_view, 5> kPickled = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};

bool is_pickled(const fs::path& path) {
  return std::find(kPickled.begin(), kPickled.end(), path.extension().string()) != kPickled.end();
}

[[noreturn]] void refuse_pickle(const fs::path& path) {
  throw std::runtime_error(
      fmt::format("{} holds pickled weights, which can run any code when they are read; Cairn reads safetensors. "
                  "Convert them with: "
                  "python -c \"import torch; from safetensors.torch import save_file; save_file({{k: "
                  "v.contiguous().clone() for k, v in "
                  "torch.load('{}', map_location='cpu', weights_only=True).items()}}, '{}')\"",
                  path.string(), path.string(), (path.parent_path() / "model.safetensors").string()));
}

// The file to read of a folder: model.safetensors, its index, or the only .safetensors there is.
fs::path choose(const fs::path& folder) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"})
    if (fs::exists(folder / name)) return folder / name;
  std::vector<fs::path> files, pickled;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    if (is_pickled(entry.path())) pickled.push_back(entry.path());
  }
  if (files.size() == 1) return files.front();
  if (files.empty() && !pickled.empty()) refuse_pickle(*std::min_element(pickled.begin(), pickled.end()));
  throw std::runtime_error(
      fmt::format("{} holds {}: model.safetensors or model.safetensors.index.json expected", folder.string(),
                  files.empty() ? "no weights" : fmt::format("{} .safetensors files and no index", files.size())));
}

// tensor -> file name, as the index says.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(fmt::format("{}: {}", path.string(), what));
  };
  ordered_json index;
  try {
    index = parse_strict(read_file(path));
  } catch (const JsonError& e) {
    fail(e.what());
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail("no object 'weight_map' from tensor to file");
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string())
      fail(fmt::format("the file of tensor '{}' is {} where a string is expected", tensor, file.type_name()));
    const auto& name = file.get_ref<const std::string&>();
    if (name.empty() || name != fs::path(name).filename() || name == "." || name == "..")
      fail(fmt::format("tensor '{}' lies in '{}': a file name without folders is expected", tensor, name));
    if (is_pickled(name)) refuse_pickle(path.parent_path() / name);
    map[tensor] = name;
  }
  if (map.empty()) fail("'weight_map' is empty");
  return map;
}

}  // namespace

struct ModelWeights::Made {
  struct Entry {
    MadeTensor tensor;
    std::mutex mutex;
    std::unique_ptr<char[]> memory;
    TensorView view;  // with data once it is made
  };
  std::deque<Entry> entries;
};

ModelWeights ModelWeights::open(const fs::path& given) {
  if (!fs::exists(given)) throw std::runtime_error(fmt::format("{} does not exist", given.string()));
  const fs::path path = fs::is_directory(given) ? choose(given) : given;
  if (is_pickled(path)) refuse_pickle(path);
  ModelWeights model;
  model.path_ = path;
  if (path.extension() == ".json") {
    const auto map = read_index(path);
    std::map<std::string, size_t> number;  // file name -> place in files_
    for (const auto& [tensor, name] : map) number.emplace(name, 0);
    for (auto& [name, k] : number) {
      const fs::path shard = path.parent_path() / name;
      if (!fs::exists(shard))
        throw std::runtime_error(
            fmt::format("{} is missing: {} places tensors there", shard.string(), path.filename().string()));
      k = model.files_.size();
      model.files_.push_back(Safetensors::open(shard));
    }
    for (const auto& [tensor, name] : map) {
      const Safetensors& file = model.files_[number[name]];
      if (!file.contains(tensor))
        throw std::runtime_error(fmt::format("{} has no tensor '{}', which {} places there", file.path().string(),
                                             tensor, path.filename().string()));
      model.file_of_[tensor] = number[name];
    }
  } else {
    model.files_.push_back(Safetensors::open(path));
  }
  for (size_t k = 0; k < model.files_.size(); ++k)
    for (const std::string& tensor : model.files_[k].names())
      if (model.file_of_.emplace(tensor, k).first->second == k) model.names_.push_back(tensor);
  return model;
}

ModelWeights ModelWeights::made(const fs::path& path, std::vector<MadeTensor> tensors) {
  ModelWeights model;
  model.path_ = path;
  model.made_ = std::make_shared<Made>();
  for (MadeTensor& tensor : tensors) {
    model.file_of_.emplace(tensor.view.name, model.names_.size());
    model.names_.push_back(tensor.view.name);
    Made::Entry& entry = model.made_->entries.emplace_back();
    entry.view = tensor.view;
    entry.tensor = std::move(tensor);
  }
  return model;
}

// The file that holds the tensor. Throws where there is none of that name.
const Safetensors* ModelWeights::file_with(const std::string& name) const {
  const auto it = file_of_.find(name);
  if (it != file_of_.end()) return made_ ? nullptr : &files_[it->second];
  if (files_.size() == 1) return &files_.front();  // its get() throws, with a near match
  throw std::runtime_error(
      made_ ? fmt::format("{} has no tensor '{}'", path_.string(), name)
            : fmt::format("{} has no tensor '{}' in its {} files", path_.string(), name, files_.size()));
}

const TensorView& ModelWeights::get(const std::string& name) const {
  if (const Safetensors* file = file_with(name)) return file->get(name);
  Made::Entry& entry = made_->entries[file_of_.at(name)];
  const std::lock_guard lock(entry.mutex);
  if (!entry.memory) {
    std::unique_ptr<char[]> memory(new char[std::max<size_t>(entry.view.bytes(), 1)]);
    entry.tensor.make(memory.get());
    entry.memory = std::move(memory);
    entry.view.data = entry.memory.get();
  }
  return entry.view;
}

const TensorView& ModelWeights::info(const std::string& name) const {
  if (const Safetensors* file = file_with(name)) return file->get(name);
  return made_->entries[file_of_.at(name)].tensor.view;
}

void ModelWeights::release(const std::string& name) const {
  if (file_with(name)) return;
  Made::Entry& entry = made_->entries[file_of_.at(name)];
  const std::lock_guard lock(entry.mutex);
  entry.memory.reset();
  entry.view.data = nullptr;
}

const Metadata& ModelWeights::metadata() const {
  static const Metadata none;
  return files_.empty() ? none : files_.front().metadata();
}

std::vector<FileEntry> write_model(const fs::path& folder, std::span<const TensorView> tensors,
                                   const Metadata& metadata, uint64_t shard_bytes, const std::string& stem) {
  if (shard_bytes == 0) throw std::invalid_argument("a shard size of 0 bytes: a positive number is expected");
  std::vector<std::vector<TensorView>> shards(1);
  uint64_t filled = 0, total = 0, parameters = 0;
  for (const TensorView& t : tensors) {
    if (!shards.back().empty() && filled + t.bytes() > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(t);
    filled += t.bytes();
    total += t.bytes();
    parameters += t.numel();
  }
  const std::string whole = stem + ".safetensors", index_name = whole + ".index.json";
  if (shards.size() == 1) {
    std::vector<FileEntry> files = {write_safetensors(folder / whole, tensors, metadata)};
    fs::remove(folder / index_name);  // an older, sharded model of that name
    return files;
  }
  std::set<std::string> names;  // a tensor given twice may fall into two shards
  for (const TensorView& t : tensors)
    if (!names.insert(t.name).second) throw std::invalid_argument(fmt::format("tensor '{}' is given twice", t.name));
  std::vector<FileEntry> files;
  nlohmann::json map = nlohmann::json::object();
  for (size_t k = 0; k < shards.size(); ++k) {
    const std::string name = fmt::format("{}-{:05}-of-{:05}.safetensors", stem, k + 1, shards.size());
    files.push_back(write_safetensors(folder / name, shards[k], metadata));
    for (const TensorView& t : shards[k]) map[t.name] = name;
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total}, {"total_parameters", parameters}}},
                                {"weight_map", map}};
  FileWriter file(folder / (".tmp-" + index_name));
  file.write(index.dump(2) + "\n");
  files.push_back(file.finish());
  files.back().path = index_name;
  fs::rename(folder / (".tmp-" + index_name), folder / index_name);
  fs::remove(folder / whole);
  sync_folder(folder);
  return files;
}

}  // namespace cairn::checkpoints
