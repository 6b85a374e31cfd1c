// Numbers of the host on their way to a device.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::aten {

// host (on the CPU) on `device`; itself where that is the CPU. To a GPU it goes through page-locked memory: neither
// side waits for the other, and the memory is not used again before the copy is made (LibTorch's host allocator sees to
// it).
inline at::Tensor upload(const at::Tensor& host, at::Device device) {
  if (!host.defined() || device.is_cpu()) return host;
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace cairn::kernels::aten
