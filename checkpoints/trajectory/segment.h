// One segment: an HDF5 file with `steps` int64 [K] and a dataset [K, shape...] a tensor, made of chunks that were
// compressed before the library sees them. A chunk belongs to one tensor: reading a tensor touches its own bytes alone.
#pragma once
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <vector>

#include "checkpoints/hdf5.h"
#include "checkpoints/trajectory/codec.h"
#include "checkpoints/trajectory/index.h"

namespace cairn::checkpoints::trajectory {

/// How a tensor is cut. One of at least 256 KiB is cut along its first dimension into `pieces` of about 512 KiB to 1
/// MiB, each a contiguous range of the tensor and a chunk of its own; a smaller one is whole, and up to 16 steps of it
/// share a chunk.
struct Placement {
  int64_t steps = 1;           // that share a chunk
  int64_t pieces = 1;          // chunks that make a step
  int64_t elements = 0;        // of one step in a chunk; the last piece is padded with zeros
  std::vector<int64_t> chunk;  // the chunk's shape, [steps, ...]
  int64_t axis = 0, rows = 1;  // a piece is `rows` long along dimension `axis` of the dataset
};
Placement place(const Format::Tensor& tensor, int width);

/// Stored words are the bits of the stored type or, for delta, the differences.
class SegmentWriter {
 public:
  /// Creates the file and its datasets, for up to `capacity` steps.
  SegmentWriter(std::filesystem::path path, const Format& format, int64_t capacity);
  /// Removes a file that was not finished.
  ~SegmentWriter();

  /// The next step; `key`: its words are no differences (delta alone).
  void begin(int64_t step, bool key);
  const Placement& placement(size_t tensor) const { return tensors_[tensor].placement; }
  /// The chunk of a piece of the step that was begun, for tensors with placement.steps == 1. From any thread.
  void write_piece(size_t tensor, int64_t piece, std::span<const char> bytes);
  /// Where the words of the step that was begun go, for the other tensors: numel words. Valid until end().
  void* slot(size_t tensor);
  /// All of the step is there. Throws where the disk refused a byte.
  void end();

  int64_t rows() const { return static_cast<int64_t>(steps_.size()); }
  bool full() const { return rows() == capacity_; }
  /// Writes what is left, closes, syncs; the file's digest (its path is the file's name) and the steps.
  Segment finish();

 private:
  struct Tensor {
    Placement placement;
    std::string name;
    hdf5::Handle dataset;
    int64_t numel = 0;
    std::vector<int64_t> shape;
    std::vector<char> held;  // the steps of a chunk that is not full yet
  };
  void write_chunk(Tensor& tensor, int64_t row, int64_t piece, std::span<const char> bytes);
  void extend(Tensor& tensor, int64_t rows);
  void flush(Tensor& tensor, int64_t first_row, int64_t rows);

  Format format_;
  int64_t capacity_;
  int width_;
  hdf5::File file_;
  std::vector<Tensor> tensors_;  // after the file: closed before it
  std::vector<int64_t> steps_;
  std::vector<uint8_t> keys_;
  Compressor compressor_;
  std::mutex mutex_;
  bool finished_ = false;
};

class SegmentReader {
 public:
  SegmentReader(const std::filesystem::path& path, const Format& format);

  int64_t rows() const { return static_cast<int64_t>(steps_.size()); }
  const std::vector<int64_t>& steps() const { return steps_; }
  /// 1 where a row's words are no differences; all of them but for delta.
  const std::vector<uint8_t>& keys() const { return keys_; }
  const Placement& placement(size_t tensor);

  /// The words of `count` rows of a tensor.
  void read(size_t tensor, int64_t first, int64_t count, void* words);
  /// A chunk as it lies in the file; `row` is its first.
  std::span<const char> raw_chunk(size_t tensor, int64_t row, int64_t piece);

  uint64_t bytes_read() const { return file_.bytes_read(); }

 private:
  struct Tensor {
    std::string name;
    hdf5::Handle dataset;
    Placement placement;
    int64_t cached = -1;  // first row of the chunk in `words`, for tensors whose chunks hold several steps
    std::vector<char> words;
  };
  Tensor& open(size_t tensor);

  Format format_;
  int width_;
  hdf5::File file_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> steps_;
  std::vector<uint8_t> keys_;
  std::vector<char> bytes_, piece_;
  Compressor compressor_;
};

/// The rows of several segments with steps up to `last_step` in one new file, equal to the bit: chunks that need not be
/// cut anew are copied as they are.
Segment merge_segments(const std::filesystem::path& folder, const Format& format, std::span<const Segment> segments,
                       const std::filesystem::path& target, int64_t last_step = INT64_MAX);

}  // namespace cairn::checkpoints::trajectory
