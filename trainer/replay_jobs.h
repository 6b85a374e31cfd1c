// A replay shared out: ranges between checkpoints, each in a process of its own.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/replay.h"

namespace cairn {

// At most `jobs` ranges (from, to] that lie one behind the other, cut at stored checkpoints, about equally long.
std::vector<std::pair<int64_t, int64_t>> share_out(int64_t from, int64_t to, const std::vector<int64_t>& stored,
                                                   int jobs);

// What one process answers: the JSON of a ReplayReport, or {"error"}; before it lines {"at": step}.
struct JobOptions {
  std::vector<std::string> command;  // up to the range: program, replay, RUN, options
  int threads = 1;                   // of each
  std::function<void(const ReplayProgress&)> progress = {};
};

// Runs the ranges at the same time and puts their reports together. Throws std::runtime_error with what a process that
// failed said.
nlohmann::ordered_json replay_ranges(const std::vector<std::pair<int64_t, int64_t>>& ranges, const JobOptions& options);

}  // namespace cairn
