// The lightning indexer (DeepSeek-V3.2-Exp report, 2025): small heads that score every earlier token for every query,
// and so choose the keys that attention reads.
//
//   I[t, s] = sum over j of w[t, j] relu(q[t, j] . k[s])        j over index_n_heads
//   q = RoPE(wq_b c_q), k = RoPE(LayerNorm(wk x)), w = weights_proj x, times heads^-1/2 dim^-1/2
//
// It learns from the attention that it stands beside, never from the language-model loss: what it reads comes in
// detached, and its loss (kernels/index_loss.h) is differentiated at once, inside the layer.
#pragma once

#include <map>

#include "models/kernels/attention.h"
#include "models/kernels/index_loss.h"
#include "models/layers/linear.h"
#include "models/layers/norm.h"
#include "models/layers/rotate.h"

namespace cairn::models {

struct IndexerConfig {
  int64_t index_n_heads = 0;   // J
  int64_t index_head_dim = 0;  // D, of which the first features are rotated: as many as the layer's RoPE has
  int64_t index_topk = 0;
  const char* query = "wq_b";  // name of the projection of queries
  bool interleaved = false;    // its RoPE: DeepSeek's is half-split while the layer's is interleaved, GLM's interleaved
  bool hadamard = false;  // q and k turned by a Hadamard matrix, which leaves every score as it is but for rounding
  double init_std = 0.02;
  // GLM: blocks may share a set; those that do not own it have no weights.
  int64_t owner = -1;  // the block whose set this one uses; -1: its own
  int64_t users = 1;   // blocks that use the set

  bool owns() const { return owner < 0; }
};

class LightningIndexer;

// The scores of one pass of a layer, and the keys that they choose.
struct IndexSet {
  const LightningIndexer* owner = nullptr;
  at::Tensor q, k, w;   // [N, J, D], [N, D], [N, J], scales folded into w; undefined: nobody needs them
  at::Tensor selected;  // int32 [N, S] positions in the sequence, ascending, -1 after the last; undefined: all
  std::map<int64_t, kernels::MassSource> sources;  // the attention of the blocks that have used it
  bool wants_attention = false;                    // learn() is waited for
};

// Where the blocks of one pass leave sets for one another, by the owner's block. With activation checkpointing the
// backward pass comes by in the other order: a set is learnt from when all of its users have been there, whoever came
// last.
struct IndexShare {
  std::map<int64_t, IndexSet> sets;
};

class LightningIndexer {
 public:
  // `name`: "model.layers.3.self_attn.indexer"; `query_size`: width of what queries are made of.
  LightningIndexer(Parameters& parameters, const std::string& name, int64_t hidden_size, int64_t query_size,
                   const IndexerConfig& config, int64_t block);

  // x [N, C] the layer's input, query [N, query_size]: what Pass::indexer asks for. With a cache it puts its keys
  // there.
  IndexSet choose(const at::Tensor& x, const at::Tensor& query, const Rotation& rotation, const Pass& pass) const;

  // After the layer's attention over the set, or over all keys: the loss and its gradient where the pass trains the
  // indexer, and measures. Where several layers use one set that is done when the last of them has been here.
  void learn(IndexSet& set, const kernels::MassSource& attention, const kernels::AttentionOptions& options,
             const Pass& pass) const;

  // Index keys, [capacity, D], as the last of cache.rows.
  void add_cache(LayerCache& cache, int64_t capacity, const at::TensorOptions& options) const;

 private:
  IndexSet project(const at::Tensor& x, const at::Tensor& query, const Rotation& rotation, const Pass& pass) const;
  void finish(const IndexSet& set, const kernels::AttentionOptions& options, const Pass& pass) const;
  void measure_places(const at::Tensor& selected, int64_t topk, const Pass& pass) const;
  kernels::IndexOptions options(const Pass& pass) const;

  IndexerConfig config_;
  int64_t block_;
  Linear wq_, kw_;  // kw: wk and weights_proj in one product
  Norm k_norm_;
  at::Tensor hadamard_;  // [D, D]
};

}  // namespace cairn::models
