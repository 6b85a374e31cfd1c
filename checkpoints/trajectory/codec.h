// Chunks compressed outside HDF5, byte for byte what its filters would read: shuffle, then deflate or zstd.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/trajectory/index.h"

namespace cairn::checkpoints::trajectory {

/// Holds the memory that a thread compresses with.
class Compressor {
 public:
  explicit Compressor(Codec codec);
  ~Compressor();

  /// `count` elements of `width` bytes as the chunk's bytes in the file; valid until the next call. plain: one zlib
  /// stream of Huffman codes alone (matches do not help here, and cost most of the time), a plane whose bytes are as
  /// good as random is stored as it is. zstd, delta: one zstd frame.
  std::span<const char> compress(const void* elements, int64_t count, int width);

  /// The inverse. Throws std::runtime_error where the bytes are not such a chunk.
  void decompress(std::span<const char> bytes, void* elements, int64_t count, int width);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The registered number of the zstd filter in HDF5.
inline constexpr int kZstdFilter = 32015;
/// Makes the library in this process know that filter. Any number of calls.
void register_zstd_filter();

}  // namespace cairn::checkpoints::trajectory
