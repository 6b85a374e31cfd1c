// What a kernel checks before it takes raw pointers; messages name the operation, the argument, what came and what was
// expected.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

inline std::string describe(const at::Tensor& x) {
  if (!x.defined()) return "an undefined tensor";
  return fmt::format("{} {} with strides {} on {}", c10::toString(x.scalar_type()), x.sizes().vec(), x.strides().vec(),
                     x.device().str());
}

// Throws std::invalid_argument unless x is a contiguous CPU tensor of this type and shape.
inline void check_tensor(const at::Tensor& x, at::ScalarType type, at::IntArrayRef shape, const char* op,
                         const char* name) {
  if (x.defined() && x.is_cpu() && x.scalar_type() == type && x.sizes() == shape && x.is_contiguous()) return;
  throw std::invalid_argument(fmt::format("[{}] {}: expected contiguous {} {} on the CPU, got {}", op, name,
                                          c10::toString(type), shape.vec(), describe(x)));
}
inline void check_floats(const at::Tensor& x, at::IntArrayRef shape, const char* op, const char* name) {
  check_tensor(x, at::kFloat, shape, op, name);
}
inline const float* floats_or_null(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }
inline float* mutable_floats_or_null(const at::Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}

// The rows of x [..., D] where they lie at regular distances: two or three dimensions of any strides, or contiguous.
// Throws std::invalid_argument unless x is float32 on the CPU with a contiguous last dimension.
template <class T>
StridedRows<T> strided_rows(const at::Tensor& x, const char* op, const char* name) {
  const bool fits = x.defined() && x.is_cpu() && x.scalar_type() == at::kFloat && x.dim() >= 1 &&
                    (x.stride(-1) == 1 || x.size(-1) <= 1 || x.numel() == 0) && (x.dim() <= 3 || x.is_contiguous());
  if (!fits) {
    throw std::invalid_argument(
        fmt::format("[{}] {}: expected float32 on the CPU, last dimension contiguous, got {}", op, name, describe(x)));
  }
  StridedRows<T> rows;
  if constexpr (std::is_const_v<T>) {
    rows.data = x.const_data_ptr<float>();
  } else {
    rows.data = x.mutable_data_ptr<float>();
  }
  rows.outer_stride = x.size(-1);
  if (x.dim() == 2) rows.outer_stride = x.stride(0);
  if (x.dim() == 3) {
    rows.inner = static_cast<size_t>(std::max<int64_t>(x.size(1), 1));
    rows.outer_stride = x.stride(0), rows.inner_stride = x.stride(1);
  }
  return rows;
}

}  // namespace cairn::kernels
