// `cairn bench delta`: Gated DeltaNet, forward and backward, at several lengths.
#pragma once

#include <nlohmann/json.hpp>

namespace cairn::bench {

struct DeltaBenchOptions {
  std::vector<int64_t> tokens{1024, 16384};  // lengths of the one sequence
  int64_t rounds = 5;
};

// Tokens a second of the layer alone and of a model of four such layers with feed-forwards and head, for each length in
// turns, and that of the last length over that of the first. Throws std::invalid_argument where a number is below 1.
nlohmann::ordered_json bench_delta(const DeltaBenchOptions& options);

}  // namespace cairn::bench
