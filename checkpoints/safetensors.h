// safetensors, read and written as the official library does (8 bytes of header length, JSON header, data without
// holes). The reader refuses every file that the official reader refuses, and duplicate keys besides; each refusal
// names the file, what is wrong and where.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoints/file.h"
#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

using Metadata = std::map<std::string, std::string>;

/// A malformed file. `kind` is the official reader's word for it: HeaderTooSmall, HeaderTooLarge, InvalidHeaderLength,
/// InvalidHeader, InvalidHeaderDeserialization, InvalidOffset, TensorInvalidInfo, ValidationOverflow,
/// MetadataIncompleteBuffer; DuplicateKey is ours.
struct SafetensorsError : std::runtime_error {
  SafetensorsError(std::string kind, const std::string& message) : std::runtime_error(message), kind(std::move(kind)) {}
  std::string kind;
};

/// One file, memory-mapped read-only. Views stay valid while the object lives (moving it keeps them valid).
class Safetensors {
 public:
  /// Throws SafetensorsError on a malformed file, std::runtime_error where it cannot be opened.
  static Safetensors open(const std::filesystem::path& path);

  /// In the order of the data.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(const std::string& name) const { return tensors_.contains(name); }
  /// The tensor's bytes lie in the mapping; files of other writers may leave them unaligned. Throws std::runtime_error
  /// naming the file and near matches where there is no such tensor.
  const TensorView& get(const std::string& name) const;
  const Metadata& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::shared_ptr<const void> mapping_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, TensorView> tensors_;
  Metadata metadata_;
};

/// A tensor that another format holds otherwise: `view` says what it becomes (its data null), make() computes it.
struct MadeTensor {
  TensorView view;
  std::function<void(void* to)> make;  // fills view.bytes() bytes; may run in several threads for several tensors
};

/// The weights of a model, in one file or in shards: a .safetensors file, a model.safetensors.index.json, or a folder
/// that holds either. Pickled weights (.bin, .pt, .pth, .ckpt) are refused with a line that says how to convert them.
class ModelWeights {
 public:
  static ModelWeights open(const std::filesystem::path& path);
  /// Those of `path`, a file of another format. Names are distinct.
  static ModelWeights made(const std::filesystem::path& path, std::vector<MadeTensor> tensors);

  const std::vector<std::string>& names() const { return names_; }
  bool contains(const std::string& name) const { return file_of_.contains(name); }
  /// What is made is made when first asked for, once, and kept until the last copy of this object goes. Any number of
  /// threads may ask.
  const TensorView& get(const std::string& name) const;
  /// Type and shape alone: what is made has no data here.
  const TensorView& info(const std::string& name) const;
  /// Lets go of a tensor that was made (the next get() makes it anew); nothing may look at it any more.
  void release(const std::string& name) const;
  /// Of the first file; none where the tensors are made.
  const Metadata& metadata() const;
  /// None where the tensors are made.
  const std::vector<Safetensors>& files() const { return files_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  struct Made;
  const Safetensors* file_with(const std::string& name) const;

  std::filesystem::path path_;
  std::vector<Safetensors> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, size_t> file_of_;  // of made tensors: their place
  std::shared_ptr<Made> made_;
};

/// Writes one file beside `path` and renames it there, synced. Tensors keep their order, save that wider elements come
/// first, which aligns every tensor (the official writer's rule; it sorts by name besides). Throws
/// std::invalid_argument on a name given twice or the reserved name `__metadata__`, std::runtime_error where the disk
/// refuses.
FileEntry write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                            const Metadata& metadata = {{"format", "pt"}});

/// The same into a file that is open; the caller finishes it.
void write_safetensors(FileWriter& file, std::span<const TensorView> tensors,
                       const Metadata& metadata = {{"format", "pt"}});

inline constexpr uint64_t kShardBytes = 5'000'000'000;

/// `stem`.safetensors where the tensors fit into `shard_bytes`, otherwise `stem`-00001-of-0000N.safetensors and
/// `stem`.safetensors.index.json, as Hugging Face lays them out. A tensor is never split. Returns the files written.
std::vector<FileEntry> write_model(const std::filesystem::path& folder, std::span<const TensorView> tensors,
                                   const Metadata& metadata = {{"format", "pt"}}, uint64_t shard_bytes = kShardBytes,
                                   const std::string& stem = "model");

}  // namespace cairn::checkpoints
