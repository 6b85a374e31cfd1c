// Which plots a page has: decided here, drawn by the page.
#pragma once

#include <nlohmann/json.hpp>

namespace cairn::report {

// One object a plot, in the order of the page:
//   {"id", "kind": "curves", "title", "unit", "names": curves of any run, "log", "smooth"}
//   {"id", "kind": "timeline", "title"}
//   {"id", "kind": "layers" | "spectra" | "profile" | "matrix" | "measured", "title", "of": [{"run", "measure"}]}
// "measured" are numbers of the whole model, of all runs in one plot.
nlohmann::ordered_json plan_figures(const nlohmann::ordered_json& runs);

}  // namespace cairn::report
