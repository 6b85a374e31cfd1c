#include "models/kernels/rope.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_rope.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {

void rope_(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin,
           bool interleaved, bool inverse) {
  if (cuda::available(x)) return cuda::table()->rope_(x, positions, cos, sin, interleaved, inverse);
  const char* op = "rope_";
  const auto rows = strided_rows<float>(x, op, "x");
  if (x.dim() != 3) throw std::invalid_argument(fmt::format("[{}] x: expected [N, H, D], got {}", op, describe(x)));
  check_tensor(positions, at::kInt, {x.size(0)}, op, "positions");
  if (!cos.defined() || cos.dim() != 2 || 2 * cos.size(1) > x.size(2)) {
    throw std::invalid_argument(
        fmt::format("[{}] cos: expected [max_position, R/2] with R at most {}, got {}", op, x.size(2), describe(cos)));
  }
  check_floats(cos, cos.sizes(), op, "cos");
  check_floats(sin, cos.sizes(), op, "sin");

  Rope job;
  job.rows = static_cast<size_t>(x.size(0)), job.heads = static_cast<size_t>(x.size(1));
  job.half = static_cast<size_t>(cos.size(1));
  job.x = rows.data;
  job.row_stride = rows.outer_stride, job.head_stride = rows.inner_stride;
  job.positions = positions.const_data_ptr<int32_t>();
  job.cos = cos.const_data_ptr<float>(), job.sin = sin.const_data_ptr<float>();
  job.interleaved = interleaved, job.inverse = inverse;
  for (size_t n = 0; n < job.rows; ++n) {
    if (job.positions[n] < 0 || job.positions[n] >= cos.size(0)) {
      throw std::invalid_argument(fmt::format("[{}] positions[{}] is {}, outside the table of {} positions", op, n,
                                              job.positions[n], cos.size(0)));
    }
  }
  simd_rope(job);
}

}  // namespace cairn::kernels
