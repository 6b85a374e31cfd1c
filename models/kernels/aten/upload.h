// Numbers of the host on their way to a device.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::aten {

// `host` on `device`; itself where it lies there already. From the CPU to a GPU it goes through page-locked memory: neither
// side waits for the other, and the memory is not used again before the copy is made (LibTorch's host allocator sees to
// it).
inline at::Tensor upload(const at::Tensor& host, at::Device device) {
  if (!host.defined() || host.device() == device) return host;
  if (!host.is_cpu() || device.is_cpu()) return host.to(device);
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace cairn::kernels::aten
