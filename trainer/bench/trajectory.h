// `cairn bench trajectory`: what weights over time cost on the disk, in the loop and to read back.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

struct TrajectoryBenchOptions {
  std::string text = "foldoc";  // what the model is trained on: a file, a folder, a glob or a known name
  int steps = 320;              // of real training, 10 apart are stored, for the sizes (4m, bytes)
  std::string size = "14m";     // of the model whose loop is measured
  std::string dtype = "float32", codec = "plain";  // with which it writes there
  int pairs = 4;                                   // of 10 steps with and 10 steps without; 0: leave it out
  std::filesystem::path dir;                       // where to write; empty: the folder for temporary files
};

// {"sizes": {"float32": {"plain": share of the raw bytes, "zstd", "delta"}, "bfloat16": ...},
//  "loop": {"size", "dtype", "codec", "without_s", "with_s" (medians of 10 steps), "cost", "stall_s"},
//  "read": {"tensor", "bytes", "steps", "stored_bytes", "read_bytes", "ratio"}}
nlohmann::ordered_json bench_trajectory(const TrajectoryBenchOptions& options);

}  // namespace cairn::bench
