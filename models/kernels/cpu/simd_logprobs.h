// Log-probabilities of rows of logits over raw pointers; see models/kernels/logprobs.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct LogprobRows {
  size_t rows = 0, columns = 0;
  float* logits = nullptr;           // [rows, columns]; overwritten
  const int32_t* targets = nullptr;  // [rows], each inside [0, columns)
  const float* bias = nullptr;       // [columns] or null
  float softcap = 0, temperature = 1;
  float* logprobs = nullptr;  // [rows]
  float* entropy = nullptr;   // [rows] or null
  float* lse = nullptr;       // [rows]
};
void simd_logprobs(const LogprobRows& job);

// The same rows, whose lse (and entropy, where dentropy is given) is known; `logits` becomes their gradient before
// softcap, temperature and bias.
struct LogprobGradientRows {
  LogprobRows forward;               // logprobs is not read
  const float* dlogprobs = nullptr;  // [rows]
  const float* dentropy = nullptr;   // [rows] or null
};
void simd_logprobs_backward(const LogprobGradientRows& job);

}  // namespace cairn::kernels
