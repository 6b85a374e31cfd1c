// RUN/probes and RUN/analysis as the page draws them: numbers of layers as a map layer x step, numbers of the whole
// model as curves, sorted arrays as spectra, other arrays and matrices as maps. What is too much for a page is thinned
// to every k-th, and says so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::report {

// All METRIC.jsonl of `folder`, one object (or a few, where a metric holds numbers and arrays) each:
//   {"area", "metric", "kind": "layers" | "curves" | "spectra" | "profile" | "matrix", ...}
// `tokens_at` gives the tokens seen by a step (-1: not known). A file that cannot be read is named in `notes`.
std::vector<nlohmann::ordered_json> read_measures(const std::filesystem::path& folder, const std::string& area,
                                                  const std::function<int64_t(int64_t)>& tokens_at,
                                                  std::vector<std::string>& notes);

}  // namespace cairn::report
