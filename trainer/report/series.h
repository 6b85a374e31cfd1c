// A series of models that no run of ours made (FOLDER/step{N}, a YAML list of {step, path}) as a page can show it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace cairn::report {

// Is this argument a pattern of folders or a list, rather than a folder?
bool names_series(const std::string& argument);

// Measures what `cairn analyze` measures by itself, the metrics of the weights, into a folder under `beside` that is
// the series' own; what is known from before is taken from its cache. Returns the folder. Throws what locate_set and
// analyze throw.
std::filesystem::path measure_series(const std::string& series, const std::filesystem::path& beside,
                                     const std::function<void(const std::string&)>& say);

}  // namespace cairn::report
