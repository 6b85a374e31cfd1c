// Counter-based random numbers (law 1): every draw is a function of (seed, purpose, indices), never of what was drawn before.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace cairn {

// What a number is drawn for; part of the key, so that no two uses share a stream. Append only: recorded runs depend on it.
enum class Purpose : uint32_t { init = 1, data = 2, dropout = 3, sample = 4, evaluate = 5, probe = 6 };

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Maps a 128-bit counter and a 64-bit key to 128 bits.
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0], p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// Random access into the stream (seed, purpose, stream): block i gives four 32-bit words.
// `stream` tells apart what the purpose needs: a step, an epoch of a source, the hash of a tensor's name.
struct Philox {
  uint64_t seed;
  Purpose purpose;
  uint64_t stream;

  std::array<uint32_t, 4> block(uint64_t index) const {
    // The purpose is folded into the key; stream and index fill the counter.
    const uint64_t key = seed ^ (uint64_t{static_cast<uint32_t>(purpose)} * 0x9E3779B97F4A7C15ull);
    return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), static_cast<uint32_t>(stream),
                       static_cast<uint32_t>(stream >> 32)},
                      {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
  }
  uint64_t bits64(uint64_t index) const {
    const auto words = block(index);
    return uint64_t{words[1]} << 32 | words[0];
  }
  // Uniform in [0, 1) with 53 bits.
  double uniform(uint64_t index) const { return static_cast<double>(bits64(index) >> 11) * 0x1.0p-53; }
};

// FNV-1a, 64 bits: names -> streams.
constexpr uint64_t hash_name(const char* text, std::size_t size) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (std::size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001b3ull;
  return hash;
}

}  // namespace cairn
