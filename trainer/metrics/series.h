// Measured values over the steps of a run: RUN/probes and RUN/analysis hold METRIC.jsonl and METRIC.h5, the same
// values in both.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace cairn {

// One value, or an array of them, of one thing at one step.
struct Measurement {
  int64_t step = 0;
  std::string name;            // what was measured: a tensor, "layer.3", "layer.3.head.1", "" for the whole model
  std::vector<int64_t> shape;  // empty: a number
  std::vector<double> values;
};

// What is known of a metric: ascending by step, then in the order of writing. Empty where the file is missing. Throws
// std::runtime_error naming file and line.
std::vector<Measurement> read_series(const std::filesystem::path& folder, const std::string& metric);

// Adds to what is there (so may others, FOLDER/.lock keeps them apart); values of the same step and name replace older
// ones. Both files appear whole or not at all. METRIC.jsonl: {"step", "name", "value": number | nested arrays} a line.
// METRIC.h5: steps/NAME int64 [K] and values/NAME float64 [K, shape ...] for each name ("model" for ""), attribute
// "metric".
void write_series(const std::filesystem::path& folder, const std::string& metric, std::span<const Measurement> more);

// Drops what was measured of later steps than `step`, of all metrics of the folder: a run that goes on from there has
// other states. A metric of which nothing is left loses its files. Returns a sentence for each that cannot be read, and
// leaves it as it is.
std::vector<std::string> cut_series(const std::filesystem::path& folder, int64_t step);

}  // namespace cairn
