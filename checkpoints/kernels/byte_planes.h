// What makes weights compress: bytes of equal weight side by side, and differences of bit patterns that are small.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cairn::checkpoints {

/// to[p * count + i] = byte p of element i: HDF5's shuffle filter. `width` in bytes: 1, 2, 4 or 8.
void to_planes(const void* from, void* to, int64_t count, int width);
/// The inverse.
void from_planes(const void* from, void* to, int64_t count, int width);

/// float32 bits to bfloat16 bits, to nearest, ties to even; a NaN stays a (quiet) NaN.
void round_to_bf16(const float* from, uint16_t* to, int64_t count);
/// Exact.
void widen_bf16(const uint16_t* from, uint32_t* to, int64_t count);

/// One word of a delta: the bits as an integer minus those of the step before, modulo 2^width, in zigzag:
/// 0 -1 1 -2 2 -> 0 1 2 3 4. `before` null: minus zero. (A rotation that takes the sign to the lowest bit was measured:
/// 1% larger, since the sign hardly ever changes and the exponent then loses a bit of its byte.)
template <class Word>
void encode_delta(const Word* bits, const Word* before, Word* out, int64_t count);
/// The inverse: bits from the words and the bits of the step before. `bits` may be `before`.
template <class Word>
void decode_delta(const Word* words, const Word* before, Word* bits, int64_t count);

}  // namespace cairn::checkpoints
