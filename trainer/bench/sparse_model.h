// `cairn bench attention`: forward and backward of a whole DeepSeek-V3.2 of four layers over growing contexts, with its
// indexer frozen and with its indexer learning.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::bench {

struct SparseModelBenchOptions {
  std::vector<int64_t> contexts{2048, 4096, 8192, 16384};
  int64_t topk = 256;
  int repeat = 3;      // calls that count, after one that does not
  bool dense = false;  // attention over all keys too, for comparison
};

// {"params", "topk", "rows": [{"context", "indexer": "frozen" | "trained" | "none", "seconds", "tokens_per_s",
// "peak_rss_mib"}]}: medians; one sequence of random tokens, the language model's loss. The peak is that of the row:
// the kernel's mark is set back before each.
nlohmann::ordered_json bench_sparse_model(const SparseModelBenchOptions& options);

}  // namespace cairn::bench
