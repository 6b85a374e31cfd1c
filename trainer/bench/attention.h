// `cairn bench attention`: the kernels of sparse attention beside LibTorch's causal scaled_dot_product_attention, in
// turns in one run.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::bench {

struct AttentionBenchOptions {
  std::vector<int64_t> contexts = {2048, 4096, 8192};
  int64_t topk = 256;
  int64_t heads = 8, key_dim = 48, value_dim = 32;  // the attention of a small deepseek_v32, expanded form
  int64_t index_heads = 4, index_dim = 32;
  int rounds = 3;     // a round: every kernel and its counterpart once, one after the other
  bool dense = true;  // time LibTorch's attention and the loss over all candidates too: both grow with the square
};

// {"threads", ..., "kernels": [{"context", "forward_s", "sdpa_forward_s", "forward_ratio", "forward_required", ...}]}:
// medians of the rounds, ratios that of a round each. sdpa: causal, float32, values padded to the width of the keys,
// LibTorch's own backward pass. forward and backward are the sparse attention alone; index_s is the choice of the keys,
// loss_s the indexer's loss over them with its gradients, warmup_loss_s that over all candidates. Queries, keys and the
// indexer's inputs are random, so hardly two queries choose alike: of all selections the hardest on the caches.
nlohmann::ordered_json bench_attention(const AttentionBenchOptions& options);

}  // namespace cairn::bench
