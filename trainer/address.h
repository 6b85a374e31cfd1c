// What a user may name as a model (law 2), turned into a folder in the Hugging Face layout or a GGUF file: a stored
// step is its own folder; one that is not stored is rebuilt by replay, verified and kept in the run's cache.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace cairn {

// One model: the folder to load it from, and where it stands in a series.
struct Located {
  std::string address;           // as the user would write it: RUN@N, RUN@N:ema, or the path
  std::filesystem::path folder;  // config.json, safetensors, tokenizer.json; or a GGUF file, which has all of it
  std::filesystem::path run;     // empty where it is no step of a run
  std::optional<int64_t> step;   // of the run or the series
  bool ema = false;              // the moving average of the weights instead of the weights
};

struct LocateOptions {
  int threads = 0;                                   // for a replay; 0: as now
  bool rebuild = true;                               // false: a step that is not stored is an error
  std::function<void(const std::string&)> say = {};  // the cost before it is spent, progress; default: stderr
};

// RUN, RUN@N, RUN@0, RUN@last, RUN@best, RUN@best:NAME, any of them with :ema, a model folder or a GGUF file. Throws
// std::runtime_error (nothing there, beyond the run, not verified) or std::invalid_argument (not an address).
Located locate(const std::string& address, const LocateOptions& options = {});

// Several, ascending by step: RUN@A:B:STRIDE, RUN@stored, RUN alone where `run_is_set` (its stored steps), a pattern
// FOLDER/step{N}, a YAML list of {step, path}, or a single address.
// The cost of all that has to be rebuilt is said once. States that are rebuilt for a range hold weights alone.
std::vector<Located> locate_set(const std::string& set, bool run_is_set = false, const LocateOptions& options = {});

// Whether it is written as a set (a range, `stored`, a pattern, a list), however many states there are in it.
bool names_several(const std::string& set);

}  // namespace cairn
