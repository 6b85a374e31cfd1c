// Large pages for what every step reads from end to end: most look-ups of addresses are spared (5% of a step of 135M
// parameters on two cores). Activations stay on small ones: they are too short-lived to earn them.
#pragma once

#include <ATen/ATen.h>

namespace cairn {

// Asks the system for 2 MiB pages under the memory that `tensor` lies in, what is touched already included. Does
// nothing for small memory, on a GPU, or where the system has none; values never change.
void use_large_pages(const at::Tensor& tensor);

}  // namespace cairn
