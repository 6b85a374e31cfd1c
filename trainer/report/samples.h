// RUN/samples.jsonl: what the model wrote along the run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::report {

// [{"step", "prompt", "text"}] ascending by step, at most about 120 of them. Of a step that was made again the later
// sample holds; those after `last` (a run that went on from an earlier step) are left out. Lines that are no sample are
// named in `notes`.
nlohmann::ordered_json read_samples(const std::filesystem::path& file, int64_t last, std::vector<std::string>& notes);

}  // namespace cairn::report
