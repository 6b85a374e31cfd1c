// Saving beside training: the loop waits for one memory copy, a background thread writes.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

/// Host memory that is allocated and touched once and used again for every snapshot of the same or a smaller size.
class SnapshotBuffer {
 public:
  /// How one piece gets here: `bytes` from `offset` of the tensor's data on. The default is memcpy; a device passes its
  /// own copy. Called from several threads at once.
  using Copy = std::function<void(void* to, const TensorView& from, size_t offset, size_t bytes)>;

  SnapshotBuffer() = default;
  ~SnapshotBuffer();
  SnapshotBuffer(const SnapshotBuffer&) = delete;
  SnapshotBuffer& operator=(const SnapshotBuffer&) = delete;

  /// Memory for that many bytes, touched by all threads. Throws std::runtime_error where there is none.
  void reserve(size_t bytes);
  /// Copies with all OpenMP threads; the views returned point into the buffer, each at a multiple of 64 bytes.
  std::vector<TensorView> fill(std::span<const TensorView> tensors, const Copy& copy = {});
  /// What fill() needs for these tensors.
  static size_t bytes_for(std::span<const TensorView> tensors);
  size_t capacity() const { return capacity_; }

 private:
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

/// One background thread and one buffer: peak memory is one snapshot. Not for calls from two threads at once.
class AsyncWriter {
 public:
  AsyncWriter();
  /// Waits for the write in flight; an error that nobody has fetched goes to stderr.
  ~AsyncWriter();
  AsyncWriter(const AsyncWriter&) = delete;
  AsyncWriter& operator=(const AsyncWriter&) = delete;

  /// Allocates ahead, so that not even the first save waits for page faults.
  void reserve(std::span<const TensorView> tensors);

  /// Waits for the save in flight, copies `tensors` (in the calling thread, with all OpenMP threads), then runs
  /// `write(snapshot)` in the background, snapshot[i] being the copy of tensors[i]. Throws, before copying, the error
  /// of an earlier write. Typical `write`: fill CheckpointContents from the snapshot, Store::commit, Store::retain.
  void save(std::span<const TensorView> tensors, std::function<void(std::span<const TensorView> snapshot)> write,
            const SnapshotBuffer::Copy& copy = {});

  /// Throws the error of an earlier write, once; does not wait.
  void check();
  /// Waits until nothing is in flight, then as check().
  void drain();
  bool busy() const;

  /// Seconds that the last save() kept its caller: all of it, and the copy alone.
  double last_stall() const { return last_stall_; }
  double last_copy() const { return last_copy_; }

 private:
  void work();

  SnapshotBuffer buffer_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  bool running_ = false, stopping_ = false;
  std::exception_ptr error_;
  double last_stall_ = 0, last_copy_ = 0;
  std::thread thread_;
};

}  // namespace cairn::checkpoints
