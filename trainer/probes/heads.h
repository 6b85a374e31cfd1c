// Attention probabilities of one pass, computed plainly from its queries and keys: a number a head.
#pragma once

#include "models/layers/capture.h"
#include "trainer/probes/probe.h"

namespace cairn {

// Keys that each of the `rows` queries sees, itself among them: causal, in its document. int64 [batch, length].
at::Tensor candidates(int64_t rows, const kernels::AttentionOptions& options);

class Heads : public models::Capture {
 public:
  // probabilities [1, H, T, T] of one sequence, which honour the causal mask, window, soft-cap, documents and
  // chosen keys of the block -> a value for each head and row that counts, [H, rows].
  using Measure = std::function<at::Tensor(const at::Tensor& probabilities)>;
  explicit Heads(Measure measure) : measure_(std::move(measure)) {}

  bool wants_attention() const override { return true; }
  void attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                 const kernels::AttentionOptions& options) override;

  // Adds "layer.I" -> [H], the mean over rows and sequences, and starts anew.
  void report(ProbeResults& results);

 private:
  struct Sum {
    at::Tensor heads;  // float64 [H]
    int64_t rows = 0;
  };
  Measure measure_;
  std::vector<Sum> sums_;  // of each block
};

}  // namespace cairn
