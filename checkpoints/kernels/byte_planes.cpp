// Plain loops that the compiler vectorises; beside them stands a compressor that is slower than any of them.
#pragma GCC optimize("O3")
#include "checkpoints/kernels/byte_planes.h"

#include <cmath>
#include <cstring>

namespace cairn::checkpoints {
namespace {

constexpr int64_t kBlock = 4096;  // elements: what is read once for all planes stays in the first cache

template <int width>
void split(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    for (int p = 0; p < width; ++p)
      for (int64_t i = begin; i < end; ++i) to[p * count + i] = from[i * width + p];
  }
}

template <int width>
void join(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    for (int p = 0; p < width; ++p)
      for (int64_t i = begin; i < end; ++i) to[i * width + p] = from[p * count + i];
  }
}

}  // namespace

void to_planes(const void* from, void* to, int64_t count, int width) {
  const auto* f = static_cast<const uint8_t*>(from);
  auto* t = static_cast<uint8_t*>(to);
  if (width == 2) return split<2>(f, t, count);
  if (width == 4) return split<4>(f, t, count);
  if (width == 8) return split<8>(f, t, count);
  std::memcpy(to, from, count);
}

void from_planes(const void* from, void* to, int64_t count, int width) {
  const auto* f = static_cast<const uint8_t*>(from);
  auto* t = static_cast<uint8_t*>(to);
  if (width == 2) return join<2>(f, t, count);
  if (width == 4) return join<4>(f, t, count);
  if (width == 8) return join<8>(f, t, count);
  std::memcpy(to, from, count);
}

void round_to_bf16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const uint32_t nan = bits >> 16 | 0x40;
    to[i] = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
  }
}

void widen_bf16(const uint16_t* from, uint32_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint32_t>(from[i]) << 16;
}

template <class Word>
void encode_delta(const Word* bits, const Word* before, Word* out, int64_t count) {
  constexpr int top = 8 * sizeof(Word) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const Word d = static_cast<Word>(bits[i] - (before ? before[i] : Word{0}));
    out[i] = static_cast<Word>(static_cast<Word>(d << 1) ^ static_cast<Word>(0 - (d >> top)));
  }
}

template <class Word>
void decode_delta(const Word* words, const Word* before, Word* bits, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Word z = words[i];
    bits[i] = static_cast<Word>((before ? before[i] : Word{0}) + ((z >> 1) ^ static_cast<Word>(0 - (z & 1))));
  }
}

template void encode_delta(const uint16_t*, const uint16_t*, uint16_t*, int64_t);
template void encode_delta(const uint32_t*, const uint32_t*, uint32_t*, int64_t);
template void decode_delta(const uint16_t*, const uint16_t*, uint16_t*, int64_t);
template void decode_delta(const uint32_t*, const uint32_t*, uint32_t*, int64_t);

}  // namespace cairn::checkpoints
