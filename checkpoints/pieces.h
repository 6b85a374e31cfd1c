// Tensors that several processes stored together: each in some file, some of them cut into pieces.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/safetensors.h"
#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

/// A tensor, or elements [first_index, first_index + view.numel()) of the row-major tensor `view.name` of shape
/// `whole`.
struct TensorPiece {
  TensorView view;
  int64_t first_index = 0;
  std::vector<int64_t> whole;

  bool is_whole() const;
};

/// What a piece is called in its file: "NAME[first_index]".
std::string piece_name(const std::string& name, int64_t first_index);

/// Name and first index of "NAME[first_index]"; any other name is a whole tensor's: itself and 0.
std::pair<std::string, int64_t> whole_name(const std::string& name);

/// The tensors of STEM.safetensors, or of the files that STEM.safetensors.index.json lists, with pieces put together.
class PiecedTensors {
 public:
  /// `stem`: ".../training/optimizer", say. Throws std::runtime_error where a piece is missing, naming the place.
  static PiecedTensors open(const std::filesystem::path& stem);

  /// Whether open() has something to open.
  static bool stored(const std::filesystem::path& stem);

  /// Of whole tensors, sorted.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return pieces_.contains(name); }
  DType dtype(const std::string& name) const;
  int64_t numel(const std::string& name) const;
  /// The whole tensor: in the file's mapping, or put together in memory that lives as long as this object.
  TensorView get(const std::string& name);
  /// Copies elements [first, first + count) of the flat tensor to `to`. Throws std::runtime_error where they are not
  /// there.
  void read(const std::string& name, int64_t first, int64_t count, void* to) const;

 private:
  explicit PiecedTensors(ModelWeights files) : files_(std::move(files)) {}
  // (first index, name in the files), ascending and without gaps.
  const std::vector<std::pair<int64_t, std::string>>& pieces(const std::string& name) const;

  ModelWeights files_;
  std::map<std::string, std::vector<std::pair<int64_t, std::string>>> pieces_;
  std::map<std::string, std::vector<int64_t>> shapes_;    // of tensors that are cut
  std::map<std::string, std::unique_ptr<char[]>> whole_;  // those that get() has put together
};

}  // namespace cairn::checkpoints
