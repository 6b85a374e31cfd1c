#include "checkpoints/async_writer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "checkpoints/kernels/stream_copy.h"

namespace cairn::checkpoints {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kPiece = 1 << 20;  // what a thread copies at a time
constexpr size_t kPage = 4096, kHugePage = 2 << 20;

size_t padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

SnapshotBuffer::~SnapshotBuffer() {
  if (data_) ::munmap(data_, capacity_);
}

void SnapshotBuffer::reserve(size_t bytes) {
  if (bytes <= capacity_) return;
  if (data_)
    ::munmap(std::exchange(data_, nullptr), std::exchange(capacity_, 0));  // first, so that the peak stays one snapshot
  const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED)
    throw std::runtime_error(
        fmt::format("no memory for a snapshot of {} bytes: {}: set checkpoints.async to false, or use a "
                    "machine with more memory",
                    bytes, std::strerror(errno)));
  ::madvise(data, size, MADV_HUGEPAGE);
  data_ = data;
  capacity_ = size;
#pragma omp parallel for schedule(static)
  for (size_t at = 0; at < size; at += kPage) static_cast<volatile char*>(data)[at] = 0;
}

size_t SnapshotBuffer::bytes_for(std::span<const TensorView> tensors) {
  size_t bytes = 0;
  for (const TensorView& t : tensors) bytes += padded(t.bytes());
  return bytes;
}

std::vector<TensorView> SnapshotBuffer::fill(std::span<const TensorView> tensors, const Copy& copy) {
  reserve(bytes_for(tensors));
  std::vector<TensorView> views(tensors.begin(), tensors.end());
  struct Piece {
    size_t tensor, offset, bytes;
  };
  std::vector<Piece> pieces;
  char* to = static_cast<char*>(data_);
  for (size_t k = 0; k < views.size(); ++k) {
    const size_t bytes = views[k].bytes();
    views[k].data = to;
    for (size_t at = 0; at < bytes; at += kPiece) pieces.push_back({k, at, std::min(kPiece, bytes - at)});
    to += padded(bytes);
  }
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    char* target = static_cast<char*>(const_cast<void*>(views[p.tensor].data)) + p.offset;
    try {
      if (copy) {
        copy(target, tensors[p.tensor], p.offset, p.bytes);
      } else {
        stream_copy(target, static_cast<const char*>(tensors[p.tensor].data) + p.offset, p.bytes);
      }
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
  return views;
}

AsyncWriter::AsyncWriter() : thread_([this] { work(); }) {}

AsyncWriter::~AsyncWriter() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  try {
    check();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "a checkpoint was not written: %s\n", e.what());
  } catch (...) {
    std::fprintf(stderr, "a checkpoint was not written\n");
  }
}

void AsyncWriter::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return job_ || stopping_; });
    if (!job_) return;
    auto job = std::exchange(job_, nullptr);
    lock.unlock();
    std::exception_ptr error;
    try {
      job();
    } catch (...) {
      error = std::current_exception();
    }
    job = nullptr;  // what it captured goes before anyone is told that it is done
    lock.lock();
    running_ = false;
    if (error) error_ = error;
    changed_.notify_all();
  }
}

void AsyncWriter::reserve(std::span<const TensorView> tensors) {
  drain();
  buffer_.reserve(SnapshotBuffer::bytes_for(tensors));
}

void AsyncWriter::save(std::span<const TensorView> tensors, std::function<void(std::span<const TensorView>)> write,
                       const SnapshotBuffer::Copy& copy) {
  const auto start = Clock::now();
  drain();
  const auto copying = Clock::now();
  std::vector<TensorView> snapshot = buffer_.fill(tensors, copy);
  last_copy_ = seconds_since(copying);
  {
    const std::lock_guard lock(mutex_);
    job_ = [snapshot = std::move(snapshot), write = std::move(write)] { write(snapshot); };
    running_ = true;
  }
  changed_.notify_all();
  last_stall_ = seconds_since(start);
}

void AsyncWriter::check() {
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    error = std::exchange(error_, nullptr);
  }
  if (error) std::rethrow_exception(error);
}

void AsyncWriter::drain() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !running_; });
  }
  check();
}

bool AsyncWriter::busy() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

}  // namespace cairn::checkpoints
