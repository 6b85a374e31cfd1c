#include "optim/norm.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "optim/kernels/device.h"
#include "optim/kernels/ref/passes.h"

namespace cairn::optim {

void squared_norm_pieces(const at::Tensor& flat, double* out) {
  if (!flat.is_contiguous() || flat.scalar_type() != at::kFloat)
    throw std::invalid_argument(fmt::format("squared_norm_pieces: got {}{}; expected contiguous float32",
                                            flat.is_contiguous() ? "" : "strided ", c10::toString(flat.scalar_type())));
  if (!flat.is_cpu()) {
    if (const auto pass = kernels::device_passes().squared_norm_pieces; pass != nullptr) return pass(flat, kPiece, out);
    const at::Tensor sums = kernels::ref::squared_norm_pieces(flat, kPiece).cpu();
    std::copy_n(sums.const_data_ptr<double>(), sums.numel(), out);
    return;
  }
  const float* x = flat.const_data_ptr<float>();
  const int64_t n = flat.numel();
  at::parallel_for(0, piece_count(n), 8, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      out[piece] = kernels::squared_norm(x + piece * kPiece, std::min(kPiece, n - piece * kPiece));
  });
}

double tree_sum(const double* values, int64_t count) {
  if (count <= 0) return 0.0;
  std::vector<double> sums(values, values + count);
  for (; count > 1; count = (count + 1) / 2) {
    for (int64_t i = 0; i + 1 < count; i += 2) sums[i / 2] = sums[i] + sums[i + 1];
    if (count % 2 == 1) sums[count / 2] = sums[count - 1];
  }
  return sums[0];
}

double gradient_norm(const at::Tensor& flat) {
  std::vector<double> pieces(piece_count(flat.numel()));
  squared_norm_pieces(flat, pieces.data());
  return std::sqrt(tree_sum(pieces.data(), static_cast<int64_t>(pieces.size())));
}

double clip_coefficient(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace cairn::optim
