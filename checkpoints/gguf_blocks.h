// The element types of GGUF: numbers, or blocks of numbers that share a scale. Numbers on disk as in ggml.h's
// ggml_type; a row (the fastest dimension) is a whole number of blocks.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace cairn::checkpoints {

struct BlockType {
  uint32_t id;  // on disk
  std::string_view name;
  int64_t elements;  // of a block
  int64_t bytes;     // of a block
  // `blocks` blocks at `from` (no alignment needed) -> elements * blocks numbers. Null: known by name alone.
  void (*to_float)(const uint8_t* from, int64_t blocks, float* to);
};

/// Null where the number is none of ggml's.
const BlockType* block_type(uint32_t id);

/// "F32, F16, ...": those that can be read.
std::string readable_block_types();

/// elements * blocks numbers, by as many threads as OpenMP gives. REQUIRES type.to_float.
void dequantize(const BlockType& type, const uint8_t* from, int64_t blocks, float* to);

}  // namespace cairn::checkpoints
