#include "models/kernels/ref/rope.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin,
                bool interleaved) {
  const int64_t N = x.size(0), H = x.size(1), D = x.size(2), half = cos.size(1);
  const auto type = wide_type(x);
  const auto at_rows = [&](const at::Tensor& table) {
    return table.index_select(0, positions).to(type).unsqueeze(1);  // [N, 1, R/2]
  };
  const auto c = at_rows(cos), s = at_rows(sin);
  // Pairs as the last dimension (interleaved) or the one before it.
  const int64_t dim = interleaved ? 3 : 2;
  const auto pairs =
      x.narrow(2, 0, 2 * half)
          .to(type)
          .reshape(interleaved ? std::vector<int64_t>{N, H, half, 2} : std::vector<int64_t>{N, H, 2, half});
  const auto a = pairs.select(dim, 0), b = pairs.select(dim, 1);  // [N, H, R/2]
  const auto rotated = at::stack({a * c - b * s, b * c + a * s}, dim).reshape({N, H, 2 * half}).to(x.scalar_type());
  return at::cat({rotated, x.narrow(2, 2 * half, D - 2 * half)}, 2);
}

}  // namespace cairn::kernels::ref
