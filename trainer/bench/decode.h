// `cairn bench decode`: one stream of tokens from a Llama of random weights, beside what reading its weights costs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

struct DecodeBenchOptions {
  std::string size = "135m";  // 4m, 14m, 135m
  int64_t tokens = 48;        // of each round
  int rounds = 3;             // a round: tokens, then the read
};

// {"tokens_per_s", "read_gib_per_s", "bound_tokens_per_s", "share_of_bandwidth", ...}: medians of the rounds.
// tokens_per_s: Generator::run, greedy, float32, from a prompt of one token. read_gib_per_s: float32 memory of at least
// 512 MiB summed by all threads. The bound is that rate over the bytes of the weights that a token reads (all but an
// embedding table that is not the head too); keys and values are left out of it.
nlohmann::ordered_json bench_decode(const DecodeBenchOptions& options);

}  // namespace cairn::bench
