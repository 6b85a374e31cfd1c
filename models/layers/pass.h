// What one forward pass knows besides the hidden states.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "models/kernels/available.h"
#include "models/kernels/dropout.h"
#include "models/seams.h"

namespace cairn::models {

class Capture;      // layers/capture.h
class Measured;     // layers/measured.h
struct IndexShare;  // layers/lightning_indexer.h
struct PagedCache;  // layers/paged_cache.h

// What a mixer remembers of one sequence.
struct LayerCache {
  std::vector<at::Tensor> rows;    // [capacity, ...] each, filled up to the sequence's length: keys and values, latents
  std::vector<at::Tensor> states;  // what stands after the last row: recurrent states
};

// One for each block; `length` rows of the sequence are in them.
struct SequenceCache {
  std::vector<LayerCache> layers;
  int64_t length = 0;
  int64_t capacity = 0;
};

// What the stage of a run asks of layers that have an indexer.
struct IndexerPass {
  // dense: all keys are attended to; warmup: likewise, and the indexer learns from it; sparse: the chosen ones alone.
  enum class Mode { dense, warmup, sparse };
  Mode mode = Mode::sparse;
  int64_t topk = 0;    // 0: the model's index_topk
  int64_t sinks = 0;   // the first positions of a document: always chosen
  int64_t window = 0;  // the last positions before a query, its own among them: always chosen
  bool train = false;  // the indexer's loss is computed, and its gradient
  double loss_coef = 1;
};

// What a training step asks of experts beside their output. Coefficients are of means over the rows of the global
// batch, added up over the blocks.
struct ExpertsPass {
  double capacity_factor = 0;    // of a sequence an expert takes at most ceil(this * T k / E) tokens; 0: all
  double sequence_aux_loss = 0;  // DeepSeek-V3's sequence-wise balance loss
  double router_z_loss = 0;      // log^2 of the router's normalizer (ST-MoE)
  at::Tensor balance;            // float32 [E] or undefined: gradient of the scores of every row (router_aux_loss_coef)
};

// Legend of the shape comments in layers/: B sequences, T tokens of each, N = B * T rows, C hidden width, H query
// heads, K key/value heads, D head width, F feed-forward width, V vocabulary.
struct Pass {
  int64_t batch = 1;       // B
  int64_t length = 0;      // T
  at::Tensor positions;    // int32 [N]
  at::Tensor segments;     // int32 [N], or undefined: one document a row
  bool reference = false;  // plain ATen twins instead of kernels
  bool aten = false;       // no hand-written kernels: the way of a GPU, through LibTorch's operators alone
  bool keep_sums = false;  // the loss's sums stay on the device (Loss::sums): nobody waits for it
  at::ScalarType products = at::kFloat;  // type of the operands of matrix products
  double dropout = 0;                    // 0 outside training
  uint64_t dropout_seed = 0;
  uint64_t step = 0;
  int64_t first_row = 0;           // of this micro-batch in the step's batch, rows of N: keys dropout
  SequenceCache* cache = nullptr;  // decoding
  const Seams* seams = &Seams::none();
  Capture* capture = nullptr;  // who looks inside
  // Auxiliary losses are means over the global batch: over its rows, and over those that see at least two candidates.
  double row_scale = 0;    // 1 / rows
  double query_scale = 0;  // 1 / such rows
  IndexerPass indexer;
  ExpertsPass experts;
  std::shared_ptr<IndexShare> index_share;  // where blocks share the sets of their indexers
  Measured* measured = nullptr;       // what layers report; null: nobody asks, or this run of a block will be run again
  const PagedCache* paged = nullptr;  // decoding many sequences at once, for a decoder that is pageable()

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
