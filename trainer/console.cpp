#include "trainer/console.h"

#include <unistd.h>

#include <cstdio>

namespace cairn {

Console::Console(bool quiet, bool silent)
    : quiet_(quiet || silent), silent_(silent), terminal_(isatty(STDOUT_FILENO) != 0) {}

void Console::progress(const std::string& text) {
  if (quiet_ || !terminal_) return;
  std::fputs(("\r\033[K" + text).c_str(), stdout);
  std::fflush(stdout);
  open_ = true;
}

void Console::line(const std::string& text) {
  if (quiet_) return;
  std::fputs(((open_ ? "\r\033[K" : "") + text + "\n").c_str(), stdout);
  std::fflush(stdout);
  open_ = false;
}

void Console::warn(const std::string& text) {
  if (!quiet_) return line(text);
  if (!silent_) std::fprintf(stderr, "cairn: %s\n", text.c_str());
}

void Console::step(const StepLine& l, bool permanent) {
  const std::string of = l.last ? fmt::format("/{}", *l.last) : "";
  std::string text = fmt::format("step {:>5}{}  loss {:.4f}  grad {:.3f}  lr {:.2e}  {:>8} tok/s  {:>3.0f}% of peak",
                                 l.step, of, l.loss, l.grad_norm, l.lr,
                                 fmt::group_digits(static_cast<int64_t>(l.tokens_per_s)), 100 * l.share_of_peak);
  if (l.eta_s >= 0) text += "  ETA " + duration(l.eta_s);
  permanent ? line(text) : progress(text);
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h {:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m {:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string count(double value) {
  if (value >= 1e9) return fmt::format("{:.2f}B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

}  // namespace cairn
