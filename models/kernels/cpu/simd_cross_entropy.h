// Softmax cross-entropy of rows of logits over raw pointers; see models/kernels/cross_entropy.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct CrossEntropyRows {
  size_t rows = 0, columns = 0;
  float* logits = nullptr;  // [rows, columns]; becomes their gradient, or is left undefined without `gradients`
  const int32_t* targets = nullptr;  // [rows], each inside [0, columns)
  const float* bias = nullptr;       // [columns] or null
  float logit_scale = 1, softcap = 0;
  float scale = 1, z_loss = 0;
  bool gradients = false;
  double* nll = nullptr;       // [rows]
  double* lse = nullptr;       // [rows] log Z
  uint8_t* correct = nullptr;  // [rows] 1 where the first of the largest logits is the target
};

void simd_cross_entropy(const CrossEntropyRows& job);

}  // namespace cairn::kernels
