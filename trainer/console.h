// What a person sees while a run goes on: a line that renews itself on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace cairn {

struct StepLine {
  int64_t step = 0;
  std::optional<int64_t> last;
  double loss = 0, grad_norm = 0, lr = 0;
  double tokens_per_s = 0;
  double share_of_peak = 0;  // of the machine's float32 product peak
  double eta_s = -1;         // < 0: not known
};

class Console {
 public:
  // `quiet` (--json): warnings go to the standard error, nothing else is said. `silent` (ranks other than the first):
  // nothing at all.
  explicit Console(bool quiet, bool silent = false);
  // Keeps one line, on a terminal only.
  void progress(const std::string& text);
  void step(const StepLine& line, bool permanent);
  // A line that stays.
  void line(const std::string& text);
  // One that is said with --json too.
  void warn(const std::string& text);

 private:
  bool quiet_, silent_, terminal_;
  bool open_ = false;  // a renewing line stands on the screen
};

// "3m 20s", "1h 02m".
std::string duration(double seconds);
// "4.98M", "124.4M".
std::string count(double value);

}  // namespace cairn
