#include "trainer/source_order.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <vector>

#include "trainer/run_files.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using config::Json;

std::string text_of(bool value) { return value ? "true" : "false"; }

std::string text_of(const std::vector<config::SourceOptions>& sources) {
  std::vector<std::string> names;
  for (const auto& source : sources)
    names.push_back(source.weight == 1 ? source.name : fmt::format("{} (weight {})", source.name, source.weight));
  return fmt::format("[{}]", fmt::join(names, ", "));
}

struct StagedKey {
  const char* key;
  std::string (*text)(const config::Stage&);  // equal where the order is
};

constexpr StagedKey kStaged[] = {
    {"train.batch", [](const config::Stage& s) { return std::to_string(s.train.batch); }},
    {"data.context", [](const config::Stage& s) { return std::to_string(s.data.context); }},
    {"data.mask_documents", [](const config::Stage& s) { return text_of(s.data.mask_documents); }},
    {"data.train", [](const config::Stage& s) { return text_of(s.data.train); }},
};

struct RunKey {
  const char* key;
  std::string (*text)(const config::RunConfig&);
};

constexpr RunKey kWholeRun[] = {
    {"seed.data", [](const config::RunConfig& c) { return std::to_string(c.seed.data); }},
    {"data.validation_fraction",
     [](const config::RunConfig& c) { return fmt::format("{}", c.data.validation_fraction); }},
};

// "data.train" -> the value that stage k of `config` has for it.
Json value_of(const config::RunConfig& config, size_t k, const std::string& key) {
  const auto pointer = [&] {
    std::string path = "/" + key;
    std::replace(path.begin(), path.end(), '.', '/');
    return Json::json_pointer(path);
  }();
  const Json& own = config.stages.at(k).overrides;
  return own.contains(pointer) ? own.at(pointer) : config::to_json(config).at(pointer);
}

std::string shell_word(const std::string& text) {
  if (text.find_first_of(" '\"{}[]$&;*?()<>|\\") == std::string::npos) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

}  // namespace

std::optional<OrderChange> order_change(const config::RunConfig& was, const config::RunConfig& now, int64_t last) {
  if (last < 1) return std::nullopt;
  for (const RunKey& one : kWholeRun) {
    const std::string before = one.text(was), after = one.text(now);
    if (before != after) return OrderChange{one.key, before, after, 1, false};
  }
  std::set<int64_t> begins = {1};
  for (const auto* config : {&was, &now})
    for (const auto& stage : config->stages) begins.insert(stage.first + 1);
  for (const int64_t step : begins) {
    if (step > last) break;
    for (const StagedKey& one : kStaged) {
      const std::string before = one.text(was.stage_of(step)), after = one.text(now.stage_of(step));
      if (before != after) return OrderChange{one.key, before, after, step, true};
    }
  }
  return std::nullopt;
}

void check_order(const fs::path& run, const config::RunConfig& config, int64_t last) {
  const Json build = read_build(run);
  if (!build.contains("settings")) return;
  const auto was = config::parse(build.at("settings").dump(), (run / "build.json").string());
  const auto change = order_change(was, config, last);
  if (!change) return;
  const std::string found = fmt::format(
      "found {} now, was {} when {} was made: where a source stands hangs on it, so data would be repeated "
      "or left out",
      change->now, change->was,
      change->step == last ? fmt::format("step {}", last) : fmt::format("steps {} to {}", change->step, last));
  if (!change->staged) {
    config.fail(change->key, fmt::format("{}. Put it back, or start a new run from these weights (model.from: {}@{})",
                                         found, run.string(), last));
  }
  const auto& stage = config.stage_of(change->step);
  const size_t k = &stage - config.stages.data();
  const std::string prefix = config.staged ? fmt::format("stages.{}.", k) : "";
  const Json value = value_of(config, k, change->key);
  std::string fork = fmt::format("cairn fork {} --run NEW {}", shell_word(fmt::format("{}@{}", run.string(), last)),
                                 shell_word(change->key + "=" + value.dump()));
  // The end may have been moved along, and a fork at the old end needs one.
  for (const Json& other : changed_settings(run, config)) {
    const auto key = other.at("key").get<std::string>();
    if (!config.staged && key.starts_with("train.") &&
        (key == "train.steps" || key == "train.tokens" || key == "train.epochs") && !other.at("now").is_null())
      fork += fmt::format(" {}={}", key, other.at("now").dump());
  }
  config.fail(
      prefix + change->key,
      fmt::format("{}. Put it back (a later stage may have another), or go on in a new run: `{}`", found, fork));
}

}  // namespace cairn
