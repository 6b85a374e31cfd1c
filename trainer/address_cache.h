// RUN/cache: states that replays made, in the layout of checkpoints, beside the run and not part of it. Any of them may
// go at any time and comes back by replay.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "trainer/stepper.h"

namespace cairn {

std::filesystem::path cache_folder(const std::filesystem::path& run);

// Bytes that a run's cache may hold: CAIRN_CACHE_GIB (default 4). Throws std::invalid_argument where it is no number.
uint64_t cache_limit();

// What of a state is written.
enum class Part { full, weights, ema };

// The name of a state in the cache: step-N (which a replay can begin at), step-N-weights, step-N-ema.
std::string entry_name(int64_t step, Part part);

// What an entry has to hold to be used: a run that went back and on under other settings has other states.
struct Wanted {
  std::optional<Part> part;  // none: whatever it is
  std::string digest;        // of the state; "": not known
};

// The folder RUN/cache/NAME, whole and with every byte as it was written: an existing one that holds what is wanted, or
// what `build` makes, which gets the path where the folder is going to be. One process builds, others that want the
// same wait for it. The folder stays as long as this process lives; the ones that were used longest ago and that no
// process uses make way for it. Throws std::runtime_error where the cache cannot be written.
std::filesystem::path cached(const std::filesystem::path& run, const std::string& name, const Wanted& wanted,
                             const std::function<void(const std::filesystem::path& target)>& build);

// An existing one alone.
std::optional<std::filesystem::path> find_cached(const std::filesystem::path& run, const std::string& name,
                                                 const Wanted& wanted);

// Whether its manifest says that it is there and holds what is wanted: no other byte is read.
bool seems_cached(const std::filesystem::path& run, const std::string& name, const Wanted& wanted);

// Drops all states after `step`, but for those that a process uses: a run that goes on from an earlier step.
void drop_cached_after(const std::filesystem::path& run, int64_t step);

// Writes a state as a checkpoint folder that appears whole; `before_commit`, where given, is called when all is written
// and may throw to have nothing appear. Part::ema: a model whose weights are the moving average; throws
// std::runtime_error where there is none.
void write_state(const std::filesystem::path& target, Stepper& stepper, Part part, double elapsed,
                 const std::function<void()>& before_commit = {});

// A model folder whose weights are the moving average that the checkpoint `from` holds.
void write_ema(const std::filesystem::path& target, const std::filesystem::path& from);

}  // namespace cairn
