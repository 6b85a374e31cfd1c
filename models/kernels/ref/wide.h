// The type that plain twins compute in: float32 at least; float64 stays float64.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

inline at::ScalarType wide_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
inline at::Tensor wide(const at::Tensor& x) { return x.to(wide_type(x)); }

}  // namespace cairn::kernels::ref
