// Weights over time, written step by step into segments that are sealed one by one: a segment is written beside as
// .tmp-segment-N.h5, synced, digested, renamed, listed in MANIFEST.json, joined in trajectory.h5. What is listed stays
// whole whatever happens later.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "checkpoints/tensor.h"
#include "checkpoints/trajectory/index.h"
#include "checkpoints/trajectory/segment.h"

namespace cairn::checkpoints::trajectory {

struct WriterOptions {
  int threads = 1;                           // that compress
  int64_t segment_bytes = int64_t{1} << 30;  // a segment is sealed when its steps make that much before compression ...
  int64_t segment_steps = 64;                // ... or so many
  size_t max_segments = 256;                 // a reader opens every one of them; above it older ones are merged ...
  size_t merge = 16;                         // ... so many neighbours at a time
  int64_t key_every = 16;                    // delta: a step whose words are no differences, at least so often
  std::function<void()> before_seal;         // called before a segment is listed: syncs what knows of its steps
};

class Writer {
 public:
  /// Opens the folder or makes it. Drops what a crash left and every stored step after `keep_to`. Throws
  /// std::runtime_error where the list is damaged, std::invalid_argument where the steps that stay have another format.
  Writer(std::filesystem::path folder, Format format, WriterOptions options, int64_t keep_to = INT64_MAX);
  ~Writer();

  /// Adds a step above all before it: tensors in the order of the format, F32 or BF16, converted to the stored type
  /// (to nearest even; exact where it is wider). Compresses with all threads; returns when the step is in the segment
  /// in progress, which is not yet listed. Throws where the disk refuses; the segment in progress is lost then.
  void add(int64_t step, std::span<const TensorView> tensors);
  /// Seals the segment in progress, where there is one: after it returns its steps survive a power cut.
  void seal();

  /// What is sealed.
  const Index& index() const { return index_; }
  /// The newest step, sealed or not; -1 where there is none.
  int64_t last_step() const;
  int64_t unsealed_steps() const { return segment_ ? segment_->rows() : 0; }

 private:
  void publish(Index next);
  void merge_where_many(Index& index, std::vector<std::filesystem::path>& gone);
  void cut(Index& index, int64_t keep_to);

  std::filesystem::path folder_;
  WriterOptions options_;
  Index index_;
  std::unique_ptr<SegmentWriter> segment_;
  int64_t newest_ = -1;
  int64_t since_key_ = 0;
  bool need_key_ = true;
  std::vector<std::vector<char>> before_;  // delta: the bits of the step before, tensor by tensor
};

/// Writes trajectory.h5 over the index' segments under `path`: `steps`, `keys` (delta), a virtual dataset a tensor.
/// Returns its entry, called kJoinName.
FileEntry write_join(const std::filesystem::path& path, const Index& index);

}  // namespace cairn::checkpoints::trajectory
