// The backward pass of an embedding through LibTorch's operators: what tensors on a GPU take.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::aten {

// dweight[ids[n]] += scale * dy[n]. On a GPU the order of the additions is fixed only where LibTorch's deterministic
// algorithms are on (trainer/device.cpp switches them on): it sorts then instead of adding atomically.
void embedding_backward_(const at::Tensor& dweight, const at::Tensor& dy, const at::Tensor& ids, double scale);

}  // namespace cairn::kernels::aten
