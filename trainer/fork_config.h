// The settings of a fork: those of its parent with changes, the data order going on where the parent stood.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace cairn {

// A fork is a new stage of its parent. Changes of what fixes the data order (data.train, data.context,
// data.mask_documents, train.batch) and of optim.schedule hold from `step` on, as `stages`: the sources go on where
// they stood, a changed schedule begins at `step`. All other changes lie over the run's own settings. `parent`: the
// settings that made the step after, as JSON; `last`: the parent's last step, where it is known. Throws
// config::ConfigError for an unknown key (with a near match), a value out of range, and what a fork cannot change (the
// tokenizer).
config::RunConfig fork_config(const config::Json& parent, int64_t step, std::optional<int64_t> last,
                              const std::vector<std::string>& changes, const std::string& name);

}  // namespace cairn
