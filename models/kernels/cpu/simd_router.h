// Routing over raw pointers; see models/kernels/router.h.
#pragma once

#include <cstdint>

namespace cairn::kernels {

struct RouteJob {
  int64_t experts = 0, topk = 0, groups = 1, topk_groups = 1;
  int scoring = 0;  // RouterOptions::Scoring
  bool normalise = false;
  float scale = 1;
  const float* logits = nullptr;  // [N, E]
  const float* bias = nullptr;    // [E] or null
  // Written forward, read backward.
  int32_t* chosen = nullptr;  // [N, k]
  float* weights = nullptr;   // [N, k]
  float* scores = nullptr;    // [N, E]
  float* lse = nullptr;       // [N]
  float* entropy = nullptr;   // [N], forward alone
  // Backward.
  const float* dweights = nullptr;  // [N, k]
  const float* balance = nullptr;   // [S, E] or null
  int64_t sequence_rows = 1;        // N / S
  float z = 0;
  float* dlogits = nullptr;  // [N, E]
};

void route_rows(const RouteJob& job, int64_t begin, int64_t end);
void route_rows_backward(const RouteJob& job, int64_t begin, int64_t end);

}  // namespace cairn::kernels
