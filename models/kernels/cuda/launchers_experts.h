// Experts and their router on a GPU: what the .cu files offer, as launchers.h says. Nothing here waits for the GPU: the
// sizes of the groups stay there, and grids are as large as they may ever have to be.
//
// Never run on a GPU so far; tests/models/cuda_emulated_experts_test.cpp runs the kernels on a CPU.
#pragma once

#include "models/kernels/cuda/launchers.h"

namespace cairn::kernels::cuda {

// ---- experts_sort.cu: N * k pairs (token, slot) in order of expert, those of an expert in order of token

constexpr int64_t kExpertTile = 64;  // rows of one expert that a block of a product takes
constexpr int64_t kSortPiece = 256;  // pairs that a block of the sort takes

// At most so many tiles are not empty.
constexpr int64_t expert_tiles(int64_t pairs, int64_t experts) { return pairs / kExpertTile + experts; }

struct ExpertTile {
  int32_t expert, first, rows;  // rows = 0: nothing to do
};

struct ExpertSort {
  int64_t pairs = 0, experts = 0;             // below 2^31
  int64_t sequence_pairs = 0;                 // pairs of a sequence; they divide `pairs`
  int64_t capacity = 0;                       // of each sequence an expert takes the first so many; 0: all
  const int32_t* expert = nullptr;            // [pairs]; a pair outside [0, E) is dropped (the router gives none)
  int32_t* first = nullptr;                   // [E + 1] first row of a group; the last: rows in all
  int32_t* pair = nullptr;                    // [pairs] of a row; only rows in use are written
  int32_t* place = nullptr;                   // [pairs] row of a pair; -1: dropped
  ExpertTile* tiles = nullptr;                // [expert_tiles]
  int32_t *start = nullptr, *room = nullptr;  // workspaces, [sort_pieces, E]

  int64_t sequences() const { return pairs / sequence_pairs; }
  int64_t pieces() const { return sequences() * ((sequence_pairs + kSortPiece - 1) / kSortPiece); }
};
void sort_by_expert(const ExpertSort& job, Stream stream);

// ---- experts.cu: a gated feed-forward by expert. Row r of a group belongs to token pair[r] / slots. Weights that are
// wider than the rows are rounded to their type first; sums are float32.

struct ExpertsCall {
  Type type, weight_type;  // of x, y and what goes with them; of the weights and biases
  int64_t tokens = 0, slots = 0, experts = 0, hidden = 0, inner = 0;                     // N, k, E, C, F
  const int32_t *expert = nullptr, *first = nullptr, *pair = nullptr, *place = nullptr;  // of the sort
  const ExpertTile* tiles = nullptr;
  const void *gate_up = nullptr, *gate_up_bias = nullptr;  // [E * 2F, C], [E * 2F] or null
  const void *down = nullptr, *down_bias = nullptr;        // [E * C, F], [E * C] or null
  int kind = 0;                                            // of the gate, as launchers.h numbers them; -1: clamped
  float alpha = 0, limit = 0;
  const void* x = nullptr;         // [N, C]
  const float* weights = nullptr;  // [N, k]
  void* gates = nullptr;           // [N k, 2F] of the type; the backward pass leaves its gradient there
};

struct ExpertsForward {
  ExpertsCall call;
  void* h = nullptr;    // workspace, [N k, F] of the type
  void* out = nullptr;  // workspace, [N k, C] of the type
  void* y = nullptr;    // [N, C]
};
void experts_forward(const ExpertsForward& job, Stream stream);

struct ExpertsBackward {
  ExpertsCall call;
  const void* dy = nullptr;   // [N, C]
  float* hidden = nullptr;    // workspace, [N k, F]
  void* dinputs = nullptr;    // workspace, [N k, C] of the type
  void* dx = nullptr;         // [N, C]
  float* dweights = nullptr;  // [N, k], zero where a slot was dropped: the caller clears it
  float *dgate_up = nullptr, *dgate_up_bias = nullptr, *ddown = nullptr, *ddown_bias = nullptr;  // added to, or null
};
void experts_backward(const ExpertsBackward& job, Stream stream);

// ---- router.cu; shapes and formulas as in models/kernels/router.h, all float32

struct Route {
  int64_t rows = 0, experts = 0, topk = 1, groups = 1, topk_groups = 1;
  int scoring = 0;  // as RouterOptions::Scoring numbers them
  bool normalise = false;
  float scale = 1;
  const float* logits = nullptr;  // [N, E]
  const float* bias = nullptr;    // [E] or null; forward
  // Written by the forward pass, read by the backward pass.
  int32_t* chosen = nullptr;                                    // [N, k]
  float *weights = nullptr, *scores = nullptr, *lse = nullptr;  // [N, k], [N, E], [N]
  // Backward.
  const float *dweights = nullptr, *balance = nullptr;  // [N, k]; [S, E] or null
  int64_t sequence_rows = 1;                            // N / S
  float z = 0;
  float* dlogits = nullptr;  // [N, E]
};
// Throw std::invalid_argument where a row does not fit into shared memory (some 1,400 experts).
void route(const Route& job, Stream stream);
void route_backward(const Route& job, Stream stream);

}  // namespace cairn::kernels::cuda
