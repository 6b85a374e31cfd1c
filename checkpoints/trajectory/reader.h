// Reads a trajectory, whatever its codec. Values are those that were stored, to the bit.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/trajectory/index.h"
#include "checkpoints/trajectory/segment.h"

namespace cairn::checkpoints::trajectory {

/// Not for two threads at once; several readers of one folder are fine.
class Reader {
 public:
  /// RUN/trajectory. Throws std::runtime_error where the list of segments is missing or damaged.
  explicit Reader(std::filesystem::path folder);

  const Format& format() const { return index_.format; }
  /// Stored steps, ascending: row k is the state after steps()[k].
  const std::vector<int64_t>& steps() const { return steps_; }
  /// The row of a step, where it is stored.
  std::optional<int64_t> row_of(int64_t step) const;
  /// The tensor's place in the format. Throws std::runtime_error where there is no such tensor.
  size_t tensor(const std::string& name) const;

  /// Rows first .. first + count - 1 of a tensor, row-major [count, shape...], as float32 (exact for bfloat16).
  std::vector<float> read(size_t tensor, int64_t first, int64_t count = 1);
  /// The same as bits of the stored type, into `count` * numel elements. A delta is summed from the key frame before.
  void read_bits(size_t tensor, int64_t first, int64_t count, void* bits);

  /// Bytes read from segments so far.
  uint64_t bytes_read() const;

 private:
  SegmentReader& segment(size_t number);
  bool is_key(int64_t row);

  std::filesystem::path folder_;
  Index index_;
  std::vector<int64_t> steps_;
  std::vector<int64_t> first_row_;  // of each segment, and the end
  std::optional<size_t> open_number_;
  std::unique_ptr<SegmentReader> open_;
  uint64_t bytes_of_closed_ = 0;
};

}  // namespace cairn::checkpoints::trajectory
