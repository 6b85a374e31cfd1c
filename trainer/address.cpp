#include "trainer/address.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdio>

#include "checkpoints/journal.h"
#include "trainer/address_cache.h"
#include "trainer/address_parts.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"
#include "trainer/replay_steps.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool is_run(const fs::path& path) { return fs::exists(path / "run.yaml") || fs::is_directory(path / "checkpoints"); }

// A model folder or a GGUF file; a folder inside a run knows its step.
Located model_at(const std::string& address) {
  open_weights(address);  // pickled weights are refused here
  Located located{.address = address, .folder = address};
  const fs::path path = fs::absolute(address).lexically_normal();
  const fs::path folder = path.filename().empty() ? path.parent_path() : path;
  if (const auto step = checkpoints::Store::step_of(folder.filename().string());
      step && folder.parent_path().filename() == "checkpoints") {
    located.run = folder.parent_path().parent_path();
    located.step = step;
  }
  return located;
}

// Numbers that a run can be ranked by, of one line of the journal: "<set>_nll", "<set>_bits_per_byte", "mean_nll",
// "loss".
std::map<std::string, double> metrics_of(const Json& line) {
  std::map<std::string, double> metrics;
  if (line.contains("loss") && line.at("loss").is_number()) metrics["loss"] = line.at("loss").get<double>();
  if (!line.contains("eval")) return metrics;
  double sum = 0;
  for (const auto& [set, values] : line.at("eval").items()) {
    metrics[set] = metrics[set + "_nll"] = values.at("nll").get<double>();
    if (values.contains("bits_per_byte")) metrics[set + "_bits_per_byte"] = values.at("bits_per_byte").get<double>();
    sum += values.at("nll").get<double>();
  }
  if (!line.at("eval").empty()) metrics[kMeanLoss] = sum / line.at("eval").size();
  return metrics;
}

int64_t best_step(const fs::path& run, const std::string& wanted) {
  const std::string name = wanted.empty() ? kMeanLoss : wanted;
  std::map<int64_t, double> values;
  std::set<std::string> names;
  for (const auto& stored : checkpoints::Store(run, checkpoints::Store::Mode::read).list()) {
    const Json metrics = stored.manifest.about.value("metrics", Json::object());
    for (const auto& [metric, value] : metrics.items()) names.insert(metric);
    if (const auto value = stored.metric(name)) values[stored.step] = *value;
  }
  for (const Json& line : checkpoints::read_journal(run / "journal.jsonl")) {
    for (const auto& [metric, value] : metrics_of(line)) {
      names.insert(metric);
      if (metric == name) values[line.at("step").get<int64_t>()] = value;
    }
  }
  const auto best =
      std::min_element(values.begin(), values.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (best != values.end()) return best->first;
  throw std::runtime_error(fmt::format(
      "{}@best: no step has the metric '{}'; there {}", run.string(), name,
      names.empty() ? "are none: set eval.every and a validation set" : fmt::format("are {}", fmt::join(names, ", "))));
}

int64_t newest_stored(const fs::path& run, const std::string& address, const RebuildTalk& talk) {
  const checkpoints::Store store(run, checkpoints::Store::Mode::read);
  const auto newest = store.newest_valid();
  for (const auto& damaged : newest.damaged) {
    talk.say(fmt::format("checkpoint step {} of {} is damaged ({}): going back to {}", damaged.step, run.string(),
                         damaged.fault.message(),
                         newest.step ? fmt::format("step {}", newest.step->step) : "what the journal has"));
  }
  if (newest.step) return newest.step->step;
  if (fs::exists(run / "run.yaml")) {
    if (const int64_t last = RunRecord(run).last_step(); last > 0) return last;
  }
  throw std::runtime_error(fmt::format("{}: {} has no committed checkpoint", address, run.string()));
}

std::string stored_steps(const fs::path& run) {
  std::string text;
  for (const auto& stored : checkpoints::Store(run, checkpoints::Store::Mode::read).list())
    text += fmt::format("{}{}", text.empty() ? "" : ", ", stored.step);
  return text.empty() ? "none" : text;
}

}  // namespace

RebuildTalk talk_of(const LocateOptions& options) {
  if (options.say) return {.say = options.say};
  RebuildTalk talk{.say = [](const std::string& text) { std::fprintf(stderr, "cairn: %s\n", text.c_str()); }};
  if (isatty(STDERR_FILENO) == 0) return talk;
  talk.progress = [start = std::chrono::steady_clock::now()](int64_t step, int64_t done, int64_t total) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "\r\033[Kstep %lld  %.1f steps/s  ETA %s%s", static_cast<long long>(step), done / seconds,
                 duration(seconds / done * (total - done)).c_str(), done == total ? "\n" : "");
  };
  return talk;
}

Threads::Threads(int threads) : before_(at::get_num_threads()) {
  if (threads > 0) at::set_num_threads(threads);
}
Threads::~Threads() { at::set_num_threads(before_); }

bool stored_whole(const fs::path& run, int64_t step, const RebuildTalk& talk) {
  const fs::path folder = checkpoints::Store(run, checkpoints::Store::Mode::read).path_of(step);
  if (!fs::exists(folder)) return false;
  const auto fault = checkpoints::verify_folder(folder);
  // A file besides those written does no harm here; `verify` names it.
  if (!fault || fault->problem == "extra") return true;
  talk.say(fmt::format("checkpoint step {} of {} is damaged ({}): it is rebuilt from what lies before", step,
                       run.string(), fault->message()));
  return false;
}

Wanted wanted_of(const RunRecord& record, int64_t step, Part part) {
  return {.part = part, .digest = record.digest_of(step)};
}

fs::path state_folder(const RunRecord& record, Replayer& replayer, int64_t step, Part part, const RebuildTalk& talk) {
  check_reach(record, step);
  if (part == Part::weights) {
    const auto more = find_cached(record.run(), entry_name(step, Part::full), wanted_of(record, step, Part::full));
    if (more) return *more;
  }
  return cached(record.run(), entry_name(step, part), wanted_of(record, step, part), [&](const fs::path& target) {
    const double elapsed = rebuild(replayer, step, talk);
    write_state(target, replayer.stepper(), part, elapsed, [&] { confirm(replayer, step); });
  });
}

Located locate_step(const fs::path& run, int64_t step, bool ema, const LocateOptions& options) {
  Located located{
      .address = fmt::format("{}@{}{}", run.string(), step, ema ? ":ema" : ""), .run = run, .step = step, .ema = ema};
  const RebuildTalk talk = talk_of(options);
  fs::path folder = checkpoints::Store(run, checkpoints::Store::Mode::read).path_of(step);
  if (!stored_whole(run, step, talk)) {
    if (!options.rebuild) {
      throw std::runtime_error(
          fmt::format("{}: step {} is not stored; stored are {}", run.string(), step, stored_steps(run)));
    }
    const RunRecord record(run);
    check_reach(record, step);
    // What a range left: enough for this, and no replay can begin there.
    const Part alone = ema ? Part::ema : Part::weights;
    if (const auto known = find_cached(run, entry_name(step, alone), wanted_of(record, step, alone))) {
      located.folder = *known;
      return located;
    }
    const Threads threads(options.threads);
    Replayer replayer(record);
    folder = state_folder(record, replayer, step, Part::full, talk);
  }
  if (ema) {
    const Wanted wanted{.part = Part::ema, .digest = checkpoints::read_manifest(folder).about.value("digest", "")};
    folder =
        cached(run, entry_name(step, Part::ema), wanted, [&](const fs::path& target) { write_ema(target, folder); });
  }
  located.folder = folder;
  return located;
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

AddressParts split_address(const std::string& address) {
  AddressParts parts{.run = address};
  const bool exists = fs::exists(address);  // a folder may have an @ or a colon in its name
  std::string rest = address;
  if (rest.ends_with(":ema") && !exists) {
    parts.ema = true;
    rest.resize(rest.size() - 4);
    parts.run = rest;
  }
  if (const size_t at = rest.rfind('@'); at != std::string::npos && !exists && !fs::exists(rest)) {
    parts.run = rest.substr(0, at);
    parts.selector = rest.substr(at + 1);
    if (parts.selector.empty())
      throw std::invalid_argument(
          fmt::format("{}: nothing stands behind the @: expected a step, last or best", address));
  }
  if (parts.run.filename().empty() && parts.run.has_parent_path()) parts.run = parts.run.parent_path();  // RUN/@3
  if (!fs::is_directory(parts.run))
    throw std::runtime_error(fmt::format("{}: no such model folder, GGUF file or run", address));
  if (!is_run(parts.run)) {
    throw std::runtime_error(fmt::format(
        "{}: neither a model (no config.json, no GGUF file) nor a run (no checkpoints/)", parts.run.string()));
  }
  return parts;
}

int64_t selected_step(const AddressParts& parts, const std::string& address, const LocateOptions& options) {
  const std::string& selector = parts.selector;
  if (selector.empty() || selector == "last") return newest_stored(parts.run, address, talk_of(options));
  if (selector == "best") return best_step(parts.run, "");
  if (selector.starts_with("best:")) return best_step(parts.run, selector.substr(5));
  if (const auto step = whole_number(selector)) return *step;
  throw std::invalid_argument(fmt::format(
      "{}: '{}' is no step: expected a number, last, best or best:METRIC (several: A:B:STRIDE or stored, where a "
      "command takes them)",
      address, selector));
}

Located locate(const std::string& address, const LocateOptions& options) {
  if (is_model(address)) return model_at(address);
  const AddressParts parts = split_address(address);
  return locate_step(parts.run, selected_step(parts, address, options), parts.ema, options);
}

}  // namespace cairn
