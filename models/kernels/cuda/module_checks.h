// What every file of the CUDA module needs: checks of tensors, the stream to launch on.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "models/kernels/check.h"
#include "models/kernels/cuda/launchers.h"

namespace cairn::kernels::cuda {

// Everything of one call lies on one device; its current stream is the one that is used.
struct Place {
  explicit Place(const at::Tensor& x)
      : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream(x.device().index())) {}
  c10::cuda::CUDAGuard guard;
  Stream stream;
};

inline Type type_of(const at::Tensor& x, const char* op, const char* name) {
  if (x.defined() && x.is_cuda() && x.scalar_type() == at::kFloat) return Type::float32;
  if (x.defined() && x.is_cuda() && x.scalar_type() == at::kBFloat16) return Type::bfloat16;
  throw std::invalid_argument(
      fmt::format("[{}] {}: expected float32 or bfloat16 on a GPU, got {}", op, name, describe(x)));
}

// Contiguous, on the device of `like`, of this type and shape.
inline void check(const at::Tensor& x, const at::Tensor& like, at::ScalarType type, at::IntArrayRef shape,
                  const char* op, const char* name) {
  if (x.defined() && x.device() == like.device() && x.scalar_type() == type && x.sizes() == shape && x.is_contiguous())
    return;
  throw std::invalid_argument(fmt::format("[{}] {}: expected contiguous {} {} on {}, got {}", op, name,
                                          c10::toString(type), shape.vec(), like.device().str(), describe(x)));
}

inline void check_same(const at::Tensor& x, const at::Tensor& like, const char* op, const char* name,
                       const char* like_name) {
  if (x.defined() && x.device() == like.device() && x.scalar_type() == like.scalar_type() && x.sizes() == like.sizes())
    return;
  throw std::invalid_argument(fmt::format("[{}] {}: expected type, shape and device of {} ({}), got {}", op, name,
                                          like_name, describe(like), describe(x)));
}

// Rows of x [..., D] as strided_rows() of models/kernels/check.h finds them on the CPU.
inline Rows rows_of(const at::Tensor& x, const char* op, const char* name) {
  type_of(x, op, name);
  const bool fits =
      x.dim() >= 1 && (x.stride(-1) == 1 || x.size(-1) <= 1 || x.numel() == 0) && (x.dim() <= 3 || x.is_contiguous());
  if (!fits) {
    throw std::invalid_argument(
        fmt::format("[{}] {}: expected the last dimension contiguous, got {}", op, name, describe(x)));
  }
  Rows rows;
  rows.data = const_cast<void*>(x.const_data_ptr());  // what is written to was handed in as an output
  rows.outer_stride = x.size(-1);
  if (x.dim() == 2) rows.outer_stride = x.stride(0);
  if (x.dim() == 3) {
    rows.inner = std::max<int64_t>(x.size(1), 1);
    rows.outer_stride = x.stride(0), rows.inner_stride = x.stride(1);
  }
  return rows;
}

inline int64_t row_count(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }
inline const void* data_or_null(const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

}  // namespace cairn::kernels::cuda
