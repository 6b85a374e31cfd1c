// What the user asks of a running loop through signals.
#pragma once

#include <signal.h>

namespace cairn {

// SIGINT, SIGTERM: finish the step, commit, exit 0. SIGUSR1: commit and go on. Handlers only note what came; while an
// object lives they are in place.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  static bool stop();
  static bool take_save();  // true once for each SIGUSR1

 private:
  struct sigaction old_[3];
};

}  // namespace cairn
