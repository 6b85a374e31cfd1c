// The digest of a training state: a commutative sum, the same for every sharding, layout and thread count.
//
//   digest(tensor)[lane] = sum over elements i of  K(name, lane, i / 1024) * fold(u * m[lane][i % 1024])   (mod 2^64)
//     u = bits ^ (bits >> 32) ^ r[i % 1024],  fold(p) = p ^ (p >> 32)
//
// `bits` are the element's bits as an unsigned integer, r and m fixed tables of 32-bit numbers (m odd), K odd 64-bit
// numbers. For a given place every step is bijective in the bits, so one changed element always changes both lanes.
// FORMATS.md gives the tables and ten lines of numpy. The digest of a state is the sum over its tensors.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

struct Digest {
  uint64_t lo = 0, hi = 0;  // lane 0, lane 1

  Digest& operator+=(const Digest& other);
  Digest& operator-=(const Digest& other);  // takes a part out again
  friend Digest operator+(Digest a, const Digest& b) { return a += b; }
  friend Digest operator-(Digest a, const Digest& b) { return a -= b; }
  bool operator==(const Digest&) const = default;

  /// 32 lower-case hexadecimal digits, hi first.
  std::string hex() const;
  /// The inverse of hex(). Throws std::invalid_argument on anything else.
  static Digest from_hex(std::string_view text);
};

/// Digest of a contiguous piece of the tensor `view.name` whose first element has index `first_index` in the whole
/// (row-major) tensor. Pieces add up: a shard, or the rows of a slice, one call each. Uses OpenMP for large pieces.
Digest digest_tensor(const TensorView& view, int64_t first_index = 0);

/// Sum of the digests of whole tensors, in one parallel pass: what a step's digest calls.
Digest digest_tensors(std::span<const TensorView> views);

/// The plain twin of digest_tensor: one scalar loop, the definition above word for word. The oracle in tests.
Digest digest_tensor_reference(const TensorView& view, int64_t first_index = 0);

}  // namespace cairn::checkpoints
