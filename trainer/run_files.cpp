#include "trainer/run_files.h"

#include <unistd.h>

#include "models/families/family.h"
#include "trainer/model_io.h"

namespace cairn {
namespace fs = std::filesystem;
namespace {

using checkpoints::read_file;

using Json = nlohmann::ordered_json;

Json read_build(const fs::path& run) {
  const fs::path path = run / "build.json";
  if (!fs::exists(path)) return Json::object();
  try {
    return Json::parse(read_file(path));
  } catch (const Json::exception& error) {
    throw std::runtime_error(fmt::format("{}: not valid JSON: {}", path.string(), error.what()));
  }
}

Json source_json(const data::SourceInfo& source) {
  return {{"name", source.name},
          {"path", source.path},
          {"tokens", source.tokens},
          {"documents", source.documents},
          {"digest", fmt::format("{:016x}", source.digest)},
          {"files_digest", source.files_digest}};
}

}  // namespace

checkpoints::Schedule checkpoint_schedule(const config::CheckpointOptions& options) {
  return {.every = options.every,
          .log_spaced = options.log_spaced ? checkpoints::Spacing::doubling : checkpoints::Spacing::none,
          .at = options.at,
          .at_end = options.at_end};
}

void write_run_files(const fs::path& run, const config::RunConfig& config, const nlohmann::ordered_json& build,
                     const data::Dataset& data, bool resuming, int64_t step) {
  const Json before = resuming ? read_build(run) : Json::object();
  Json now = before.empty() ? build : before;
  for (Json change : changed_settings(run, config)) {
    change["after_step"] = step;
    now["changes"].push_back(change);
  }
  now["settings"] = config::to_json(config);
  std::set<std::string> known;
  for (const Json& source : now["sources"]) known.insert(source.value("name", ""));
  for (int32_t i = 0; i < data.source_count(); ++i) {
    if (!known.contains(data.source(i).name)) now["sources"].push_back(source_json(data.source(i)));
  }
  if (now != before) checkpoints::replace_file(run / "build.json", now.dump(2) + "\n");
  if (!resuming) checkpoints::replace_file(run / "run.yaml", config::to_yaml(config));
}

std::vector<Json> changed_settings(const fs::path& run, const config::RunConfig& config) {
  const Json build = read_build(run);
  if (!build.contains("settings")) return {};
  const Json was = build.at("settings").flatten(), now = config::to_json(config).flatten();
  std::set<std::string> keys;
  for (const auto& side : {was, now})
    for (const auto& [key, value] : side.items()) keys.insert(key);
  std::vector<Json> changes;
  for (const std::string& key : keys) {
    const Json before = was.value(key, Json()), after = now.value(key, Json());
    if (before == after) continue;
    std::string dotted = key.substr(1);
    std::replace(dotted.begin(), dotted.end(), '/', '.');
    changes.push_back({{"key", dotted}, {"was", before}, {"now", after}});
  }
  return changes;
}

void check_sources(const fs::path& run, const data::Dataset& data) {
  const Json build = read_build(run);
  const Json recorded = build.value("sources", Json::array());
  // A tokenizer trained on one source changes the tokens of all: the one whose files differ is named first.
  for (const char* key : {"files_digest", "digest"}) {
    for (int32_t i = 0; i < data.source_count(); ++i) {
      const Json now = source_json(data.source(i));
      for (const Json& was : recorded) {
        if (was.value("name", "") != now.at("name") || was.value(key, "") == now.at(key)) continue;
        throw std::runtime_error(fmt::format(
            "{}: the data of source '{}' ({}) changed: found {} {}, expected {}, which {} records. Steps of other data "
            "are not steps of this run: put the old data back, or start a new run from its weights (model.from)",
            run.string(), data.source(i).name, data.source(i).path, key, now.at(key).get<std::string>(),
            was.value(key, "nothing"), (run / "build.json").string()));
      }
    }
  }
}

fs::path model_folder(const std::string& address) {
  const fs::path path(address);
  if (fs::exists(path / "config.json")) return path;
  // RUN, RUN@last, RUN@N: a stored step of a run.
  std::string run = address;
  std::string step = "last";
  // A folder may have an @ in its name.
  if (const size_t at = address.rfind('@'); at != std::string::npos && !fs::is_directory(address))
    run = address.substr(0, at), step = address.substr(at + 1);
  if (!fs::is_directory(run)) throw std::runtime_error(fmt::format("{}: no such model folder or run", address));
  if (!fs::is_directory(fs::path(run) / "checkpoints"))
    throw std::runtime_error(fmt::format("{}: neither a model (no config.json) nor a run (no checkpoints/)", run));
  const checkpoints::Store store(run, checkpoints::Store::Mode::read);
  const auto steps = store.list();
  if (steps.empty()) throw std::runtime_error(fmt::format("{}: no committed checkpoint", run));
  if (step == "last") return steps.back().path;
  int64_t wanted = -1;
  try {
    size_t used = 0;
    wanted = std::stoll(step, &used);
    if (used != step.size()) wanted = -1;
  } catch (const std::exception&) {
  }
  if (wanted < 0)
    throw std::invalid_argument(fmt::format("{}: '{}' is no step: expected a number or 'last'", address, step));
  std::string stored;
  for (const auto& s : steps) {
    if (s.step == wanted) return s.path;
    stored += (stored.empty() ? "" : ", ") + std::to_string(s.step);
  }
  throw std::runtime_error(fmt::format("{}: step {} is not stored; stored are {}", run, wanted, stored));
}

}  // namespace cairn
