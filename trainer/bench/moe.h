// `cairn bench moe`: the training step of a Qwen3 with experts, in turns with that of a dense one of as many active
// parameters.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::bench {

struct MoeBenchOptions {
  std::vector<int64_t> experts = {8, 64};
  int64_t topk = 4;
  int64_t batch = 8;      // sequences of 256 tokens a step
  int micro_batches = 1;  // of that many sequences, a step
  int steps = 7;          // counted, after `warmup`
  int warmup = 2;
};

// {"e8": {"params", "tokens_per_s", "dense_tokens_per_s", "ratio", "step_s"}, "e64": ...}: width 256, 4 blocks, experts
// of width 128, vocabulary 4096, AdamW, clipping, float32: the model of transformers' Qwen3-MoE benchmark. ratio: the
// median over pairs of steps of the mixture's rate to the dense model's (feed-forward of width 128 topk).
nlohmann::ordered_json bench_moe(const MoeBenchOptions& options);

}  // namespace cairn::bench
