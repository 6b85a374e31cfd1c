// What one forward pass knows besides the hidden states.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "models/kernels/available.h"
#include "models/kernels/dropout.h"
#include "models/seams.h"

namespace cairn::models {

class Capture;  // layers/capture.h

// Keys and values of one sequence, a pair of tensors [capacity, K, D] for each block; `length` rows of them are filled.
struct KeyValueCache {
  std::vector<at::Tensor> keys, values;
  int64_t length = 0;
  int64_t capacity = 0;
};

// Legend of the shape comments in layers/: B sequences, T tokens of each, N = B * T rows, C hidden width, H query
// heads, K key/value heads, D head width, F feed-forward width, V vocabulary.
struct Pass {
  int64_t batch = 1;                     // B
  int64_t length = 0;                    // T
  at::Tensor positions;                  // int32 [N]
  at::Tensor segments;                   // int32 [N], or undefined: one document a row
  bool reference = false;                // plain ATen twins instead of kernels
  bool aten = false;                     // no hand-written kernels: the way of a GPU, through LibTorch's operators alone
  bool keep_sums = false;                // the loss's sums stay on the device (Loss::sums): nobody waits for it
  at::ScalarType products = at::kFloat;  // type of the operands of matrix products
  double dropout = 0;                    // 0 outside training
  uint64_t dropout_seed = 0;
  uint64_t step = 0;
  int64_t first_row = 0;           // of this micro-batch in the step's batch, rows of N: keys dropout
  KeyValueCache* cache = nullptr;  // decoding
  const Seams* seams = &Seams::none();
  Capture* capture = nullptr;  // who looks inside

  int64_t rows() const { return batch * length; }
  // Which implementation takes x.
  kernels::Way way(const at::Tensor& x) const {
    if (reference) return kernels::Way::twins;
    if (aten || !x.is_cpu()) return kernels::Way::device;
    return kernels::available(x) ? kernels::Way::cpu : kernels::Way::twins;
  }
  // The key of one use of dropout: a site is a place in the model, numbered block * 4 + place.
  kernels::DropoutKey dropout_key(int64_t site) const {
    return {dropout_seed, step << 16 | static_cast<uint64_t>(site + 8), first_row};
  }
};

}  // namespace cairn::models
