// trajectory/MANIFEST.json: the sealed segments of a trajectory, their digests, and what trajectory.h5 may be. A
// segment counts once it is listed here.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "checkpoints/file.h"
#include "checkpoints/hdf5.h"
#include "checkpoints/manifest.h"

namespace cairn::checkpoints::trajectory {

enum class Codec {
  plain,  // byte planes + deflate: HDF5's own filters
  zstd,   // byte planes + zstd: the registered filter 32015
  delta,  // differences of bit patterns to the stored step before, then as zstd
};
const char* codec_name(Codec codec);
std::optional<Codec> codec_from_name(const std::string& name);

/// "weights", or "delta" for that codec: the group that holds the tensors.
const char* group_of(Codec codec);

/// What does not change inside a trajectory.
struct Format {
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    int64_t numel() const;
    bool operator==(const Tensor&) const = default;
  };
  std::vector<Tensor> tensors;
  hdf5::Type dtype = hdf5::Type::f32;  // f32 or bf16
  Codec codec = Codec::plain;

  /// Bytes of one stored step before compression.
  int64_t step_bytes() const;
  bool operator==(const Format&) const = default;
};

struct Segment {
  FileEntry file;
  std::vector<int64_t> steps;  // ascending, and above those of the segment before
};

struct Index {
  Format format;
  std::vector<Segment> segments;
  int64_t next_number = 0;  // of the next segment
  /// trajectory.h5: the last one is what it should be, the one before it what it may be where a crash came between.
  std::vector<FileEntry> joins;

  std::vector<int64_t> steps() const;
};

inline constexpr const char* kJoinName = "trajectory.h5";

/// "segment-00012.h5"
std::string segment_name(int64_t number);

/// The index, or what is wrong with it.
std::variant<Index, Fault> load_index(const std::filesystem::path& folder);
/// Its first lines say so, whatever the rest is like.
bool has_index(const std::filesystem::path& folder);
/// As load_index, but throws std::runtime_error naming the folder.
Index read_index(const std::filesystem::path& folder);
/// Replaces MANIFEST.json: whole or not at all.
void write_index(const std::filesystem::path& folder, const Index& index);

}  // namespace cairn::checkpoints::trajectory
