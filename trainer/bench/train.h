// `cairn bench train`: the training step of a Llama of a given size on random tokens, beside what its bare products
// allow.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

struct TrainBenchOptions {
  std::string size = "4m";  // 4m, 14m, 135m
  int steps = 15;            // counted, after `warmup`
  int warmup = 2;
  int lanes = 1;
  int micro_batches = 1;  // of the size's micro-batch, a lane
  std::string precision = "float32";
  std::string device = "auto";   // auto, cpu, cuda
  std::string kernels = "fast";  // fast, aten, reference
  bool ceiling = true;           // measure the bare products too
};

// {"size", "params", "device", "tokens_per_s", "gflops", "sgemm_peak_gflops", "peak_rss_mib", "ceiling_tokens_per_s",
// "share_of_ceiling", ...}: medians of the steps. The ceiling is the bare matrix products of the same step (weights: y,
// dx, dw; attention: the causal half of its six) and the optimizer's pass; all on the device and, on a GPU, in the type
// of the run's products. Never run on a GPU so far.
nlohmann::ordered_json bench_train(const TrainBenchOptions& options);

}  // namespace cairn::bench
