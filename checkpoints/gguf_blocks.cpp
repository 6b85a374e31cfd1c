// Block formats of ggml (ggml-common.h: block_q4_0, block_q4_1, block_q8_0). Every product and sum is rounded to
// float32 by itself, as the gguf package's dequantize does: equal bits.
#include "checkpoints/gguf_blocks.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace cairn::checkpoints {
namespace {

template <class T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE binary16 -> binary32, exact. Without branches, so that loops over it vectorise: a normal number's exponent moves
// by 112; a subnormal one is put behind the leading one of 2^-14, which is then taken off.
inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t normal = shifted + (112u << 23) + (magnitude >= 0x7C00u ? 112u << 23 : 0u);
  float small = from_bits(shifted + (113u << 23)) - from_bits(113u << 23);
  uint32_t subnormal;
  std::memcpy(&subnormal, &small, sizeof small);
  return from_bits(sign | (magnitude < 0x0400u ? subnormal : normal));
}

void from_f32(const uint8_t* from, int64_t count, float* to) { std::memcpy(to, from, count * sizeof(float)); }

void from_f16(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_half(load<uint16_t>(from + 2 * i));
}

void from_bf16(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_bits(static_cast<uint32_t>(load<uint16_t>(from + 2 * i)) << 16);
}

// Scale d, 32 signed bytes q: d * q.
void from_q8_0(const uint8_t* from, int64_t blocks, float* to) {
  for (int64_t b = 0; b < blocks; ++b, from += 34, to += 32) {
    const float d = from_half(load<uint16_t>(from));
    for (int i = 0; i < 32; ++i) to[i] = static_cast<float>(static_cast<int8_t>(from[2 + i])) * d;
  }
}

// Scale d, 16 bytes: the low halves are elements 0 to 15, the high ones 16 to 31: d * (q - 8).
void from_q4_0(const uint8_t* from, int64_t blocks, float* to) {
  for (int64_t b = 0; b < blocks; ++b, from += 18, to += 32) {
    const float d = from_half(load<uint16_t>(from));
    for (int i = 0; i < 16; ++i) {
      to[i] = d * static_cast<float>((from[2 + i] & 15) - 8);
      to[i + 16] = d * static_cast<float>((from[2 + i] >> 4) - 8);
    }
  }
}

// Scale d, minimum m, halves as in Q4_0: d * q + m.
void from_q4_1(const uint8_t* from, int64_t blocks, float* to) {
  for (int64_t b = 0; b < blocks; ++b, from += 20, to += 32) {
    const float d = from_half(load<uint16_t>(from)), m = from_half(load<uint16_t>(from + 2));
    for (int i = 0; i < 16; ++i) {
      const float low = d * static_cast<float>(from[4 + i] & 15), high = d * static_cast<float>(from[4 + i] >> 4);
      to[i] = low + m;
      to[i + 16] = high + m;
    }
  }
}

constexpr BlockType kTypes[] = {
    {0, "F32", 1, 4, from_f32},        {1, "F16", 1, 2, from_f16},        {2, "Q4_0", 32, 18, from_q4_0},
    {3, "Q4_1", 32, 20, from_q4_1},    {6, "Q5_0", 32, 22, nullptr},      {7, "Q5_1", 32, 24, nullptr},
    {8, "Q8_0", 32, 34, from_q8_0},    {9, "Q8_1", 32, 40, nullptr},      {10, "Q2_K", 256, 84, nullptr},
    {11, "Q3_K", 256, 110, nullptr},   {12, "Q4_K", 256, 144, nullptr},   {13, "Q5_K", 256, 176, nullptr},
    {14, "Q6_K", 256, 210, nullptr},   {15, "Q8_K", 256, 292, nullptr},   {16, "IQ2_XXS", 256, 66, nullptr},
    {17, "IQ2_XS", 256, 74, nullptr},  {18, "IQ3_XXS", 256, 98, nullptr}, {19, "IQ1_S", 256, 50, nullptr},
    {20, "IQ4_NL", 32, 18, nullptr},   {21, "IQ3_S", 256, 110, nullptr},  {22, "IQ2_S", 256, 82, nullptr},
    {23, "IQ4_XS", 256, 136, nullptr}, {24, "I8", 1, 1, nullptr},         {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},        {27, "I64", 1, 8, nullptr},        {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, nullptr},   {30, "BF16", 1, 2, from_bf16},     {34, "TQ1_0", 256, 54, nullptr},
    {35, "TQ2_0", 256, 66, nullptr},   {39, "MXFP4", 32, 17, nullptr},    {40, "NVFP4", 64, 36, nullptr},
};

}  // namespace

const BlockType* block_type(uint32_t id) {
  const auto at = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const BlockType& t) { return t.id == id; });
  return at == std::end(kTypes) ? nullptr : at;
}

std::string readable_block_types() {
  std::string names;
  for (const BlockType& type : kTypes)
    if (type.to_float) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

void dequantize(const BlockType& type, const uint8_t* from, int64_t blocks, float* to) {
  const int64_t piece = std::max<int64_t>(1, (1 << 15) / type.elements), pieces = (blocks + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t first = p * piece;
    type.to_float(from + first * type.bytes, std::min(piece, blocks - first), to + first * type.elements);
  }
}

}  // namespace cairn::checkpoints
