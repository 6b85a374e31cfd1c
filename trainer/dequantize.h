// Weights that published models hold in fewer bits, as the numbers that they stand for.
#pragma once

#include <ATen/core/Tensor.h>

namespace cairn {

// MXFP4 (OCP microscaling formats): blocks uint8 [..., rows, G, 16] of two 4-bit numbers a byte, the low half first,
// and scales uint8 [..., rows, G], powers of two biased by 127 -> float32 [..., G * 32, rows], as the tensor lies
// unquantised.
at::Tensor from_mxfp4(const at::Tensor& blocks, const at::Tensor& scales);

// DeepSeek-V3's FP8 (arXiv 2412.19437, section 3.3): weight float8_e4m3fn [rows, columns] and a factor float32 or
// bfloat16 [ceil(rows / 128), ceil(columns / 128)] for each tile of 128 x 128 -> float32 [rows, columns]. Throws
// std::runtime_error where the factors are not of that shape or type.
inline constexpr int64_t kFp8Tile = 128;
at::Tensor from_fp8(const at::Tensor& weight, const at::Tensor& factors);

}  // namespace cairn
