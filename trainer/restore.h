// Where a run that goes on begins: the newest state that is whole and that the journal knows.
#pragma once

#include <filesystem>
#include <map>

#include "checkpoints/store.h"
#include "trainer/console.h"
#include "trainer/stepper.h"

namespace cairn {

struct Restored {
  bool loaded = false;                     // the state is a checkpoint's; else the initialisation
  double elapsed = 0;                      // seconds that the run had taken
  double last_loss = 0;                    // of the last step that stays
  std::map<int64_t, std::string> digests;  // of the steps after it, which are computed again
};

// Puts that state into `stepper`, which is open. A damaged checkpoint is named and passed over for the one before it.
// Throws std::runtime_error where checkpoints go beyond the journal. Collective.
Restored restore(Stepper& stepper, const checkpoints::Store& store, parallel::World& world, Console& console);

}  // namespace cairn
