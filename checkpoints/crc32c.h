// CRC-32C (Castagnoli), as TFRecord files and the journal use it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cairn::checkpoints {

/// Of `bytes` bytes; `crc` is the value so far when the data comes in pieces.
uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);

}  // namespace cairn::checkpoints
