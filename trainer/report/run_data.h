// One run, or one folder of measured series of a foreign model, as the page takes it.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace cairn::report {

// {"name", "path", "kind": "run" | "series", "model", "parameters", "settings", "build", "state", "summary", "curves",
//  "checkpoints", "events", "stages", "samples", "measures", "notes"}. What a run does not have, or what cannot be
//  read,
// is a line in "notes", not an error. Throws std::invalid_argument where the folder is neither a run nor holds a
// series.
nlohmann::ordered_json read_run(const std::filesystem::path& path);

// [{"key", "values": one a run, null where a run does not have it}]: the settings that are not the same in all runs,
// and what of build.json differs, under "build.".
nlohmann::ordered_json differences(const nlohmann::ordered_json& runs);

}  // namespace cairn::report
