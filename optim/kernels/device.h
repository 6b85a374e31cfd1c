// The passes of a device other than the CPU. optim knows no GPU: who opens one (trainer/device.cpp) puts the
// hand-written passes here; without them tensors of that device go through the plain twins.
#pragma once

#include <ATen/ATen.h>

#include "optim/kernels/passes.h"

namespace cairn::optim::kernels {

struct DevicePasses {
  // As kernels::adamw on device memory, on the current stream of the current device; the bits of the CPU.
  void (*adamw)(const Run& run, const AdamwScalars& s) = nullptr;
  // flat: contiguous float32 on the device. out (host memory)[k]: the sum of squares of elements [k piece, (k + 1)
  // piece), in double as kernels::squared_norm adds them. Waits for the device.
  void (*squared_norm_pieces)(const at::Tensor& flat, int64_t piece, double* out) = nullptr;
};

// Empty functions take the passes away again. One device kind a process; not while an optimizer works.
void set_device_passes(const DevicePasses& passes);
const DevicePasses& device_passes();

}  // namespace cairn::optim::kernels
