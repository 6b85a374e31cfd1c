#include "trainer/run_files.h"

#include <unistd.h>

#include <ctime>

#include "checkpoints/strict_json.h"
#include "models/families/family.h"
#include "trainer/data/cache.h"
#include "trainer/model_io.h"
#include "trainer/replay_record.h"

namespace cairn {
namespace fs = std::filesystem;
namespace {

using checkpoints::read_file;

using Json = nlohmann::ordered_json;

Json source_json(const data::SourceInfo& source) {
  return {{"name", source.name},
          {"path", source.path},
          {"tokens", source.tokens},
          {"documents", source.documents},
          {"digest", fmt::format("{:016x}", source.digest)},
          {"files_digest", source.files_digest}};
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

// Adds what is new to `now["validation"]`; a set whose data changed takes the place of what was recorded.
void note_validation(Json& now, const data::SourceInfo& set, int64_t step, std::vector<std::string>& notes) {
  const Json json = source_json(set);
  // NOTE: no reference into `now` may be held where a key is added: its objects are vectors.
  Json sets = now.value("validation", Json::array());
  const auto known =
      std::find_if(sets.begin(), sets.end(), [&](const Json& was) { return was.value("name", "") == set.name; });
  if (known == sets.end()) {
    sets.push_back(json);
  } else if (const std::string was = known->value("digest", ""), is = json.at("digest"); was != is) {
    now["changes"].push_back({{"key", "data.validation." + set.name}, {"was", was}, {"now", is}, {"after_step", step}});
    notes.push_back(
        fmt::format("the data of validation set '{}' ({}) changed (digest {} now, was {}): its losses after step {} "
                    "are not comparable with those before",
                    set.name, set.path, is, was, step));
    *known = json;
  }
  now["validation"] = sets;
}

void note_machine(Json& now, const Json& build, int64_t step, std::vector<std::string>& notes) {
  if (now.contains("machines")) {  // what was to be made on another one from here on is made on this one
    Json kept = Json::array();
    for (const Json& entry : now["machines"])
      if (entry.value("after_step", int64_t{0}) < step) kept.push_back(entry);
    now["machines"] = kept;
    if (kept.empty()) now.erase("machines");
  }
  const Json was = machine_after(now, step);
  const auto differences = machine_differences(was, build);
  if (differences.empty()) return;
  Json entry{{"after_step", step}};
  entry.update(build);
  now["machines"].push_back(entry);
  notes.push_back(fmt::format("from step {} on the run goes on elsewhere than it began: {}{}", step + 1,
                              fmt::join(differences, "; "),
                              machine_differences(was, build, true).empty() ? " (which changes no bit)" : ""));
}

}  // namespace

Json read_build(const fs::path& run) {
  const fs::path path = run / "build.json";
  if (!fs::exists(path)) return Json::object();
  try {
    Json build = Json::parse(read_file(path));
    if (build.is_object()) {
      build.erase("self");
      return build;
    }
  } catch (const Json::exception& error) {
    throw std::runtime_error(fmt::format("{}: not valid JSON: {}", path.string(), error.what()));
  }
  throw std::runtime_error(fmt::format("{}: not a JSON object", path.string()));
}

void write_build(const fs::path& run, Json build) {
  build.erase("self");
  build["self"] = data::digest_hex(build.dump());
  checkpoints::replace_file(run / "build.json", build.dump(2) + "\n");
}

std::string build_fault(const fs::path& run) {
  Json build;
  const std::string text = read_file(run / "build.json");
  try {
    build = checkpoints::parse_strict(text);
  } catch (const checkpoints::JsonError& error) {
    return error.what();
  }
  if (!build.is_object()) return "it is no JSON object";
  // A program that adds a key and knows nothing of the digest puts it behind.
  if (build.empty() || (--build.end()).key() != "self") return "";
  const Json self = build.at("self");
  build.erase("self");
  const std::string found = data::digest_hex(build.dump());
  if (self != found) return fmt::format("XXH3-128 {} expected, {} found", self.dump(), found);
  build["self"] = self;
  return text == build.dump(2) + "\n" ? "" : "its spaces are not those that were written";
}

Json machine_after(const Json& build, int64_t step) {
  Json machine = Json::object();
  for (const char* key : {"program", "compiler", "torch", "mkl", "processor", "vectors", "mkl_cbwr",
                          "aten_cpu_capability", "threads", "device"})
    if (build.contains(key)) machine[key] = build.at(key);
  for (const Json& entry : build.value("machines", Json::array())) {
    if (entry.value("after_step", int64_t{0}) > step) break;
    machine = entry;
    machine.erase("after_step");
  }
  return machine;
}

std::vector<std::string> machine_differences(const Json& was, const Json& now, bool bits) {
  const auto text = [](const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
  std::vector<std::string> differences;
  for (const auto& [key, value] : now.items()) {
    if (!was.contains(key) || was.at(key) == value || (bits && key == "threads")) continue;
    differences.push_back(fmt::format("{} is {}, was {}", key, text(value), text(was.at(key))));
  }
  return differences;
}

checkpoints::Schedule checkpoint_schedule(const config::CheckpointOptions& options) {
  return {.every = options.every,
          .log_spaced = options.log_spaced ? checkpoints::Spacing::doubling : checkpoints::Spacing::none,
          .at = options.at,
          .at_end = options.at_end};
}

std::vector<std::string> write_run_files(const fs::path& run, const config::RunConfig& config,
                                         const nlohmann::ordered_json& build, const data::Dataset& data, bool resuming,
                                         int64_t step) {
  std::vector<std::string> notes;
  const Json before = resuming ? read_build(run) : Json::object();
  Json now = before.empty() ? build : before;
  if (before.empty()) now["started"] = utc_now();
  for (Json change : resuming ? changed_settings(run, config) : std::vector<Json>()) {
    change["after_step"] = step;
    now["changes"].push_back(change);
  }
  note_settings(now, step, config::to_json(config));
  const std::string yaml = resuming ? read_file(run / "run.yaml") : config::to_yaml(config);
  now["run_yaml"] = data::digest_hex(yaml);
  std::set<std::string> known;
  for (const Json& source : now["sources"]) known.insert(source.value("name", ""));
  for (int32_t i = 0; i < data.source_count(); ++i) {
    if (data.source(i).validation) {
      note_validation(now, data.source(i), step, notes);
    } else if (!known.contains(data.source(i).name)) {
      now["sources"].push_back(source_json(data.source(i)));
    }
  }
  if (resuming) {
    note_machine(now, build, step, notes);
    const Json past = now.value("resumptions", Json::array());
    if (past.empty() || past.back().value("after_step", int64_t{-1}) != step)
      now["resumptions"].push_back({{"after_step", step}, {"time", utc_now()}});
  }
  if (now != before) write_build(run, now);
  if (!resuming) checkpoints::replace_file(run / "run.yaml", yaml);
  return notes;
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
      if (data.source(i).validation) continue;
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

}  // namespace cairn
