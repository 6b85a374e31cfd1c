// Which keys a query may see: itself and what stands before it in its segment.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace cairn::kernels {

// [rows] the first position (in its sequence) of each row's segment; 0 everywhere where `segments` is undefined. int32
// [rows], non-decreasing in a sequence, else.
inline std::vector<int32_t> segment_starts(int64_t rows, int64_t batch, const at::Tensor& segments) {
  std::vector<int32_t> start(rows, 0);
  if (!segments.defined()) return start;
  const int64_t length = rows / batch;
  const at::Tensor held = segments.contiguous();
  const int32_t* segment = held.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t t = n % length;
    if (t > 0) start[n] = segment[n] == segment[n - 1] ? start[n - 1] : static_cast<int32_t>(t);
  }
  return start;
}

}  // namespace cairn::kernels
