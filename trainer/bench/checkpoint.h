// `cairn bench checkpoint`: what an asynchronous checkpoint costs the loop, beside one copy of the same bytes.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

struct CheckpointBenchOptions {
  std::string size = "14m";   // 4m, 14m, 135m
  int saves = 3;              // that count, after one that does not
  std::filesystem::path dir;  // where a folder is made for the checkpoints, and removed at the end; empty: the system's
                              // folder for temporary files
};

// {"bytes", "copy_s", "stall_s", "stall_over_copy", "write_s", "write_gib_per_s", ...}: weights and AdamW's two
// moments, float32. copy_s: median of copies of that many bytes by all threads into memory that was touched before;
// stall_s: median time that Saver::save keeps the loop, nothing being in flight; write_s: median from then until the
// checkpoint is committed.
nlohmann::ordered_json bench_checkpoint(const CheckpointBenchOptions& options);

}  // namespace cairn::bench
