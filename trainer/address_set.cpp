// Addresses of several states: steps of a run, folders by a pattern, lists.
#include <regex>

#include "checkpoints/manifest.h"
#include "trainer/address_parts.h"
#include "trainer/config/tree.h"
#include "trainer/console.h"
#include "trainer/model_io.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kNumber = "{N}";

std::vector<int64_t> stored_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  for (const auto& stored : checkpoints::Store(run, checkpoints::Store::Mode::read).list())
    steps.push_back(stored.step);
  if (steps.empty()) throw std::runtime_error(fmt::format("{}: no committed checkpoint", run.string()));
  return steps;
}

// A:B or A:B:STRIDE, both ends included where the stride meets them.
struct Range {
  int64_t first = 0, last = 0, stride = 1;

  int64_t reached() const { return first + (last - first) / stride * stride; }  // the last of its steps
};

std::optional<Range> range_of(const std::string& selector, const std::string& set) {
  std::vector<int64_t> numbers;
  for (size_t from = 0; from <= selector.size();) {
    const size_t colon = std::min(selector.find(':', from), selector.size());
    const auto number = whole_number(std::string_view(selector).substr(from, colon - from));
    if (!number) return std::nullopt;
    numbers.push_back(*number);
    from = colon + 1;
  }
  if (numbers.size() < 2) return std::nullopt;
  const int64_t stride = numbers.size() > 2 ? numbers[2] : 1;
  if (numbers.size() > 3 || stride < 1 || numbers[0] > numbers[1])
    throw std::invalid_argument(fmt::format(
        "{}: found '{}', expected A:B or A:B:STRIDE with A <= B and a stride of at least 1", set, selector));
  return Range{numbers[0], numbers[1], stride};
}

// Its steps, once it is known that the run has them: a mistyped end may be any number.
std::vector<int64_t> steps_of(const Range& range, const fs::path& run, const std::string& set) {
  const auto stored = checkpoints::Store(run, checkpoints::Store::Mode::read).list();
  int64_t last = stored.empty() ? 0 : stored.back().step;
  std::string end = fmt::format("which has no journal.jsonl and is stored to step {}", last);
  if (range.reached() > last && fs::exists(run / "run.yaml")) {
    const RunRecord record(run);
    if (record.has_journal() && record.last_step() >= last) {
      last = record.last_step();
      end = fmt::format("whose journal ends at step {}", last);
    }
  }
  if (range.reached() > last)
    throw std::runtime_error(fmt::format("{}: step {} is beyond the run, {}", set, range.reached(), end));
  std::vector<int64_t> steps;
  for (int64_t i = 0; i <= (range.last - range.first) / range.stride; ++i)
    steps.push_back(range.first + i * range.stride);
  return steps;
}

bool is_list(const std::string& set) {
  return fs::is_regular_file(set) && (set.ends_with(".yaml") || set.ends_with(".yml") || set.ends_with(".json"));
}

// Of the model alone, as a stored step has it; 0: not known.
uint64_t model_bytes(const fs::path& run) {
  for (const auto& stored : checkpoints::Store(run, checkpoints::Store::Mode::read).list()) {
    uint64_t bytes = 0;
    for (const auto& file : stored.manifest.files) bytes += file.path.starts_with("training/") ? 0 : file.size;
    return bytes;
  }
  return 0;
}

// All of them have to be there at once, so what does not fit is refused before anything is computed.
void check_room(const fs::path& run, const std::string& set, size_t states) {
  const double needed = static_cast<double>(states) * model_bytes(run), limit = static_cast<double>(cache_limit());
  if (needed <= limit) return;
  throw std::runtime_error(fmt::format(
      "{}: {} states are not stored and would take {:.2f} GiB of the cache, whose limit is {:.2f} GiB: choose a larger "
      "stride, or set CAIRN_CACHE_GIB",
      set, states, needed / (1 << 30), limit / (1 << 30)));
}

// What a pass over `missing` (ascending) is going to make; states == 0: all of them are in the cache.
struct Cost {
  int64_t states = 0, steps = 0;
  double seconds = 0;
};
Cost cost_of(const RunRecord& record, const std::vector<int64_t>& missing, Part part) {
  const auto there = [&](int64_t step, Part what) {
    return seems_cached(record.run(), entry_name(step, what), wanted_of(record, step, what));
  };
  std::vector<int64_t> bases;
  for (const auto& base : record.bases(missing.back(), true)) bases.push_back(base.step);
  std::reverse(bases.begin(), bases.end());  // ascending
  Cost cost;
  std::vector<std::pair<int64_t, int64_t>> stretches;
  int64_t at = -1;  // where the pass stands
  for (int64_t step : missing) {
    if (there(step, part) || (part == Part::weights && there(step, Part::full))) continue;
    const auto behind = std::upper_bound(bases.begin(), bases.end(), step);
    const int64_t base = behind == bases.begin() ? 0 : *(behind - 1);
    stretches.emplace_back(std::max(at, base), step);
    cost.states += 1;
    cost.steps += step - stretches.back().first;
    at = step;
  }
  if (stretches.empty()) return cost;
  const auto lines = record.lines(stretches.front().first + 1, stretches.back().second);
  for (const auto& [from, to] : stretches)
    cost.seconds += seconds_of(std::map<int64_t, Json>(lines.upper_bound(from), lines.upper_bound(to)));
  return cost;
}

std::vector<Located> locate_steps(const AddressParts& parts, const std::string& set, const std::vector<int64_t>& steps,
                                  const LocateOptions& options) {
  RebuildTalk talk = talk_of(options);
  const Part part = parts.ema ? Part::ema : Part::weights;
  std::vector<int64_t> missing;
  for (int64_t step : steps) {
    if (!stored_whole(parts.run, step, talk)) missing.push_back(step);
  }
  std::vector<Located> located;
  std::optional<RunRecord> record;
  std::optional<Replayer> replayer;
  if (!missing.empty() && options.rebuild) {
    record.emplace(parts.run);
    check_reach(*record, missing.back());
    check_room(parts.run, set, missing.size());
    replayer.emplace(*record);
    const Cost all = record->has_journal() ? cost_of(*record, missing, part) : Cost();
    if (all.states > 0)
      talk.say(fmt::format("{}: {} of {} states are not stored and are rebuilt by replay: {} in all", set, all.states,
                           steps.size(), cost(all.steps, all.seconds)));
    talk.cost_told = true;
  }
  const Threads threads(replayer ? options.threads : 0);
  for (int64_t step : steps) {
    if (!replayer || !std::binary_search(missing.begin(), missing.end(), step)) {
      located.push_back(locate_step(parts.run, step, parts.ema, options));
      continue;
    }
    // One pass over the run: each goes on from the one before.
    located.push_back({.address = fmt::format("{}@{}{}", parts.run.string(), step, parts.ema ? ":ema" : ""),
                       .folder = state_folder(*record, *replayer, step, part, talk),
                       .run = parts.run,
                       .step = step,
                       .ema = parts.ema});
  }
  return located;
}

// "stage1-step{N}-*" as a regular expression.
std::regex regex_of(const std::string& pattern) {
  std::string text;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern.compare(i, 3, kNumber) == 0) {
      text += "([0-9]+)";
      i += 2;
    } else if (pattern[i] == '*') {
      text += ".*";
    } else {
      if (std::ispunct(static_cast<unsigned char>(pattern[i]))) text += '\\';
      text += pattern[i];
    }
  }
  return std::regex(text);
}

// FOLDER/step{N}: its folders (or GGUF files) of that name, or, in a cache of the Hugging Face hub, its revisions of
// that name.
std::vector<Located> locate_pattern(const std::string& set) {
  std::string folder = ".", name, below;
  const size_t number = set.find(kNumber), begin = set.rfind('/', number), end = set.find('/', number);
  if (begin != std::string::npos) folder = begin == 0 ? "/" : set.substr(0, begin);
  name = set.substr(begin == std::string::npos ? 0 : begin + 1,
                    end == std::string::npos ? std::string::npos : end - (begin == std::string::npos ? 0 : begin + 1));
  if (end != std::string::npos) below = set.substr(end + 1);
  if (!fs::is_directory(folder)) throw std::runtime_error(fmt::format("{}: there is no folder {}", set, folder));
  const std::regex pattern = regex_of(name);
  const bool hub = fs::is_directory(fs::path(folder) / "refs") && fs::is_directory(fs::path(folder) / "snapshots");
  std::map<int64_t, std::string> found;
  for (const auto& entry : fs::directory_iterator(hub ? fs::path(folder) / "refs" : fs::path(folder))) {
    std::smatch match;
    const std::string entry_name = entry.path().filename().string();
    if (!std::regex_match(entry_name, match, pattern)) continue;
    const auto step = whole_number(match[1].str());
    if (!step) continue;
    fs::path path = entry.path();
    if (hub) {
      std::string commit = checkpoints::read_file(path);
      commit.erase(commit.find_last_not_of(" \n\r\t") + 1);
      path = fs::path(folder) / "snapshots" / commit;
    }
    if (!below.empty()) path /= below;
    if (!is_model(path)) continue;
    const auto [at, fresh] = found.emplace(*step, path.string());
    if (!fresh) {
      throw std::runtime_error(fmt::format("{}: {} and {} are both step {}: make the pattern narrower", set, at->second,
                                           path.string(), *step));
    }
  }
  if (found.empty())
    throw std::runtime_error(fmt::format("{}: no model folder or GGUF file in {} is called {}, {} being a number", set,
                                         folder, name, kNumber));
  std::vector<Located> located;
  for (const auto& [step, path] : found) {
    located.push_back(locate(path));
    located.back().step = step;
  }
  return located;
}

// [{step, path}], paths beside the file or from here; a path may be an address.
std::vector<Located> locate_list(const std::string& file, const LocateOptions& options) {
  const Json list = config::to_json(config::read_yaml(file));
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error(fmt::format("{}: {}, expected a list of {{step, path}}", file, what));
  };
  if (!list.is_array() || list.empty()) fail("found no list");
  std::vector<Located> located;
  for (const Json& item : list) {
    if (!item.is_object() || !item.contains("step") || !item.at("step").is_number_integer() || !item.contains("path") ||
        !item.at("path").is_string())
      fail(fmt::format("found {}", item.dump()));
    std::string path = item.at("path").get<std::string>();
    const fs::path beside = fs::path(file).parent_path() / path;
    const std::string bare = path.substr(0, path.rfind('@'));
    if (fs::exists(beside) || fs::exists(fs::path(file).parent_path() / bare)) path = beside.string();
    located.push_back(locate(path, options));
    located.back().step = item.at("step").get<int64_t>();
  }
  std::stable_sort(located.begin(), located.end(), [](const auto& a, const auto& b) { return *a.step < *b.step; });
  return located;
}

}  // namespace

bool names_several(const std::string& set) {
  if (set.find(kNumber) != std::string::npos && !fs::exists(set)) return true;
  if (is_list(set)) return true;
  if (fs::exists(set)) return false;
  const AddressParts parts = split_address(set);
  return parts.selector == "stored" || range_of(parts.selector, set).has_value();
}

std::vector<Located> locate_set(const std::string& set, bool run_is_set, const LocateOptions& options) {
  if (set.find(kNumber) != std::string::npos && !fs::exists(set)) return locate_pattern(set);
  if (is_list(set)) return locate_list(set, options);
  if (is_model(set)) return {locate(set, options)};
  const AddressParts parts = split_address(set);
  if (parts.selector == "stored" || (parts.selector.empty() && run_is_set))
    return locate_steps(parts, set, stored_steps(parts.run), options);
  if (const auto range = range_of(parts.selector, set))
    return locate_steps(parts, set, steps_of(*range, parts.run, set), options);
  return {locate(set, options)};
}

}  // namespace cairn
