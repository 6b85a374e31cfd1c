// The inner loop of the digest (the definition: checkpoints/digest.h).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace cairn::checkpoints {

inline constexpr int64_t kDigestBlock = 1024;  // elements that share one K

/// The finalizer of splitmix64, with its increment.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

/// r and m of the definition. `next` holds m shifted by one element: where vectors take the even elements of m, they
/// take the odd ones from here at the same place.
struct DigestTables {
  alignas(64) std::array<uint32_t, kDigestBlock> r;
  alignas(64) std::array<std::array<uint32_t, kDigestBlock>, 2> m;
  alignas(64) std::array<std::array<uint32_t, kDigestBlock>, 2> next;
};
extern const DigestTables kDigestTables;

/// K(name, lane, block), odd.
constexpr uint64_t digest_key(uint64_t name_hash, int lane, uint64_t block) {
  return mix64(mix64(name_hash + lane) + block) | 1;
}

/// Adds to sums[2] the terms of `count` elements of `element_size` bytes (1, 2, 4, 8) from index `first` on.
void digest_elements(const void* data, size_t element_size, int64_t first, int64_t count, uint64_t name_hash,
                     uint64_t* sums);

/// The instruction set in use: "AVX2", "AVX3", ... All give the same sums.
const char* digest_target();

}  // namespace cairn::checkpoints
