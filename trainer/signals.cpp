#include "trainer/signals.h"

namespace cairn {
namespace {

volatile sig_atomic_t g_stop = 0, g_save = 0;

}  // namespace

Signals::Signals() {
  g_stop = g_save = 0;
  struct sigaction stop {
  }, save{};
  stop.sa_handler = [](int) { g_stop = 1; };
  save.sa_handler = [](int) { g_save = 1; };
  sigaction(SIGINT, &stop, &old_[0]);
  sigaction(SIGTERM, &stop, &old_[1]);
  sigaction(SIGUSR1, &save, &old_[2]);
}

Signals::~Signals() {
  sigaction(SIGINT, &old_[0], nullptr);
  sigaction(SIGTERM, &old_[1], nullptr);
  sigaction(SIGUSR1, &old_[2], nullptr);
}

bool Signals::stop() { return g_stop != 0; }

bool Signals::take_save() {
  const bool asked = g_save != 0;
  g_save = 0;
  return asked;
}

}  // namespace cairn
