// The digest of tensors computed where they lie (checkpoints/digest.h has the definition): a GPU sums its state up and
// sixteen bytes come back.
//
// Never run on a GPU so far; tests/trainer/device_test.cpp compares it with the CPU's on CPU tensors.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "checkpoints/digest.h"

namespace cairn {

// A contiguous piece of the tensor `name`: float32 or bfloat16, its first element has index `first_index` in the whole.
struct DigestPart {
  std::string name;
  at::Tensor tensor;
  int64_t first_index = 0;
};

// The sum of the digests of the parts, which lie on one device. Works in 256 MiB of it and waits for it once at the
// end. Throws std::invalid_argument for a type other than the two, or a tensor that is not contiguous.
checkpoints::Digest digest_on_device(const std::vector<DigestPart>& parts);

}  // namespace cairn
