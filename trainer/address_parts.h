// The pieces that addresses of one state and of several share.
#pragma once

#include "trainer/address.h"
#include "trainer/address_cache.h"
#include "trainer/replay_steps.h"

namespace cairn {

// RUN@SELECTOR:ema. Throws where there is no such run.
struct AddressParts {
  std::filesystem::path run;
  std::string selector;  // a step, last, best, best:METRIC, stored, A:B:STRIDE; empty: none was given
  bool ema = false;
};
AddressParts split_address(const std::string& address);

// The step of a selector that names one; `address` for messages.
int64_t selected_step(const AddressParts& parts, const std::string& address, const LocateOptions& options);
std::optional<int64_t> whole_number(std::string_view text);

Located locate_step(const std::filesystem::path& run, int64_t step, bool ema, const LocateOptions& options);

// A stored step whose every byte is as it was written; says where it is damaged.
bool stored_whole(const std::filesystem::path& run, int64_t step, const RebuildTalk& talk);

// What the cache's folder of a step has to hold.
Wanted wanted_of(const RunRecord& record, int64_t step, Part part);

// The cache's folder of a step that is not stored, rebuilt where it is not there. Part::weights: one that has more will
// do. Throws std::runtime_error where the step is beyond the run or cannot be had.
std::filesystem::path state_folder(const RunRecord& record, Replayer& replayer, int64_t step, Part part,
                                   const RebuildTalk& talk);

RebuildTalk talk_of(const LocateOptions& options);

// Another number of threads as long as it lives; 0: as now.
class Threads {
 public:
  explicit Threads(int threads);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

}  // namespace cairn
