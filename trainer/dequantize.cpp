#include "trainer/dequantize.h"

namespace cairn {

at::Tensor from_mxfp4(const at::Tensor& blocks, const at::Tensor& scales) {
  const at::Tensor table = at::tensor(
      {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f});
  const at::Tensor low = blocks.bitwise_and(15).to(at::kLong), high = blocks.bitwise_right_shift(4).to(at::kLong);
  const at::Tensor nibbles = at::stack({low, high}, -1).flatten(-2);  // [..., rows, G, 32]
  const at::Tensor values = table.index_select(0, nibbles.flatten()).view(nibbles.sizes());
  const at::Tensor exponents = scales.to(at::kInt) - 127;
  return at::ldexp(values, exponents.unsqueeze(-1)).flatten(-2).transpose(-1, -2).contiguous();
}

at::Tensor from_fp8(const at::Tensor& weight, const at::Tensor& factors) {
  const bool floats = factors.scalar_type() == at::kFloat || factors.scalar_type() == at::kBFloat16;
  const auto tiles = [](int64_t n) { return (n + kFp8Tile - 1) / kFp8Tile; };
  if (weight.dim() != 2 || !floats || factors.dim() != 2 || factors.size(0) != tiles(weight.size(0)) ||
      factors.size(1) != tiles(weight.size(1))) {
    throw std::runtime_error(fmt::format("weights {} in FP8 have factors {} {}, expected float32, one for each {} x {}",
                                         weight.sizes(), c10::toString(factors.scalar_type()), factors.sizes(),
                                         kFp8Tile, kFp8Tile));
  }
  at::Tensor values = weight.to(at::kFloat);
  const at::Tensor by_row = factors.to(at::kFloat).repeat_interleave(kFp8Tile, 0).narrow(0, 0, weight.size(0));
  return values.mul_(by_row.repeat_interleave(kFp8Tile, 1).narrow(1, 0, weight.size(1)));
}

}  // namespace cairn
