// The numbers that a page shows first.
#pragma once

#include "trainer/report/journal_data.h"

namespace cairn::report {

// {"step", "tokens", "seconds", "tokens_per_s" (median), "loss", "loss_steps": of how many last steps it is the mean,
//  "nonfinite", "spikes", "eval": [{"set", "measure", "last", "last_step", "best", "best_step"}]}. What is not known
//  is not there.
nlohmann::ordered_json summary(const JournalData& journal);

}  // namespace cairn::report
