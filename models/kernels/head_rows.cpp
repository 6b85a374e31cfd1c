#include "models/kernels/head_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace cairn::kernels {

int64_t default_chunk_rows(int64_t vocabulary) {
  constexpr int64_t kElements = int64_t{4} << 20;  // 16 MiB of logits; more where 256 rows need more
  return std::clamp<int64_t>(kElements / vocabulary / 8 * 8, 256, 512);
}

std::vector<int64_t> predicted_rows(const at::Tensor& targets, int64_t vocabulary, const char* op) {
  std::vector<int64_t> rows;
  const int32_t* target = targets.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < targets.numel(); ++n) {
    if (target[n] < -1 || target[n] >= vocabulary) {
      throw std::invalid_argument(fmt::format("[{}] targets[{}] is {}, expected -1 or an id of the vocabulary of {}",
                                              op, n, target[n], vocabulary));
    }
    if (target[n] >= 0) rows.push_back(n);
  }
  return rows;
}

at::Tensor chunk_of(const at::Tensor& matrix, const int64_t* rows, int64_t count, int64_t padded,
                    const at::Tensor& buffer) {
  if (is_view(rows, count, padded)) return matrix.narrow(0, rows[0], count);
  const int64_t D = matrix.size(1);
  const float* from = matrix.const_data_ptr<float>();
  float* to = buffer.mutable_data_ptr<float>();
  for (int64_t r = 0; r < count; ++r) std::copy_n(from + rows[r] * D, D, to + r * D);
  std::fill_n(to + count * D, (padded - count) * D, 0.0f);
  return buffer.narrow(0, 0, padded);
}

}  // namespace cairn::kernels
