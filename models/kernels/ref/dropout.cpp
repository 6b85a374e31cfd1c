#include "models/kernels/ref/dropout.h"

#include "models/random.h"

namespace cairn::kernels::ref {

at::Tensor dropout_mask(int64_t rows, int64_t columns, double p, const DropoutKey& key) {
  const at::Tensor mask = at::empty({rows, columns}, at::kFloat);
  float* factor = mask.mutable_data_ptr<float>();
  const Philox random{key.seed, Purpose::dropout, key.stream};
  const uint32_t threshold = dropout_threshold(p);
  const float kept = static_cast<float>(1 / (1 - p));
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t d = 0; d < columns; ++d) {
      const uint64_t block =
          static_cast<uint64_t>(key.first_row + n) << 32 | static_cast<uint64_t>(d / 64 * 16 + d % 16);
      *factor++ = random.block(block)[d / 16 % 4] >= threshold ? kept : 0.0f;
    }
  }
  return mask;
}

at::Tensor dropout(const at::Tensor& x, double p, const DropoutKey& key) {
  if (p == 0) return x;
  return x * dropout_mask(x.size(0), x.size(1), p, key).to(x.options());
}

}  // namespace cairn::kernels::ref
