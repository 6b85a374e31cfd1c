// What `cairn data show` and `cairn data where` print.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "trainer/data/dataset.h"

namespace cairn::data {

// {"step", "stage", "rows", "context", "sequences": [{"row", "source", "epoch", "window",
//   "documents": [{"id": "SOURCE:N", "offset", "tokens"}], "ids": [...], "text" (with_text)}]}
nlohmann::json show(const Dataset& data, int64_t step, bool with_text);
std::string show_text(const nlohmann::json& shown);  // for people

// {"id", "source", "document", "tokens", "seen": [{"step", "row", "epoch", "window", "offset", "tokens"}]}.
// id: "SOURCE:N", or "N" where there is one source. Throws std::invalid_argument for an id that does not exist.
nlohmann::json where(const Dataset& data, const std::string& id, int64_t last_step = -1);

}  // namespace cairn::data
