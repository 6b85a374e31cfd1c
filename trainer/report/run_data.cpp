#include "trainer/report/run_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "checkpoints/safetensors.h"
#include "checkpoints/store.h"
#include "trainer/config/run_config.h"
#include "trainer/report/journal_data.h"
#include "trainer/report/measures.h"
#include "trainer/report/samples.h"
#include "trainer/report/summary.h"

namespace cairn::report {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kMostEvents = 200;  // of one kind

Json parse_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  return Json::parse(file);
}

class RunReader {
 public:
  explicit RunReader(fs::path path) : path_(std::move(path)) {}

  Json read() {
    out_ = {{"name", name()}, {"path", path_.string()}, {"kind", fs::exists(path_ / "run.yaml") ? "run" : "series"}};
    if (out_["kind"] == "run") {
      attempt("build.json", [&] { add_build(); });
      attempt("forks.jsonl", [&] { add_forks(); });
      attempt("journal.jsonl", [&] { add_journal(); });
      attempt("events", [&] { add_events(); });
      attempt("checkpoints", [&] { add_checkpoints(); });
      attempt("run.yaml", [&] { add_stages(); });
      attempt("samples.jsonl", [&] { add_samples(); });
    }
    add_measures();
    out_["summary"] = summary(journal_);
    out_["notes"] = notes_;
    return std::move(out_);
  }

 private:
  template <class F>
  void attempt(const char* what, F read) {
    try {
      read();
    } catch (const std::exception& error) {
      notes_.push_back(fmt::format("{} cannot be shown: {}", what, error.what()));
    }
  }

  std::string name() const {
    const fs::path whole = fs::absolute(path_).lexically_normal();
    return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  }

  void add_build() {
    const fs::path file = path_ / "build.json";
    if (!fs::exists(file)) {
      notes_.push_back("No build.json: settings, program and machine are not known.");
      return;
    }
    Json build = parse_file(file);
    if (build.contains("settings")) out_["settings"] = flat(build["settings"]);
    build.erase("settings");
    out_["build"] = build;
    for (const auto& [key, event] : {std::pair("resumptions", "resumed"), std::pair("machines", "other machine"),
                                     std::pair("changes", "setting changed")}) {
      for (const Json& entry : build.value(key, Json::array())) add_event("after_step", entry, event);
    }
    if (const Json parent = build.value("parent", Json()); parent.is_object()) add_event("step", parent, "fork of");
  }

  // Runs that were forked off this one.
  void add_forks() {
    std::ifstream file(path_ / "forks.jsonl");
    for (std::string line; std::getline(file, line);) add_event("step", Json::parse(line, nullptr, false), "forked");
  }

  // What is not in the journal but has a step: {"step", "event", ...}.
  void add_event(const char* step, const Json& entry, const char* name) {
    if (!entry.is_object() || !entry.contains(step) || !entry[step].is_number_integer()) return;
    Json event{{"step", entry[step]}, {"event", name}};
    for (const auto& [key, value] : entry.items())
      if (key != step && key != "digest" && key != "event") event[key] = value;
    events_.push_back(std::move(event));
  }

  // {"a": {"b": [1]}} -> {"a.b.0": 1}; short lists of plain values stay as they are.
  static Json flat(const Json& tree) {
    Json out = Json::object();
    flatten(tree, "", out);
    return out;
  }

  static void flatten(const Json& node, const std::string& prefix, Json& out) {
    const bool plain = !node.is_structured() || node.empty() ||
                       (node.is_array() &&
                        std::none_of(node.begin(), node.end(), [](const Json& item) { return item.is_structured(); }));
    if (plain) {
      out[prefix] = node;
      return;
    }
    for (const auto& [key, item] : node.items()) flatten(item, prefix.empty() ? key : prefix + "." + key, out);
  }

  void add_journal() {
    if (!fs::exists(path_ / "journal.jsonl")) {
      notes_.push_back("No journal.jsonl: there are no curves.");
      return;
    }
    journal_ = read_journal_data(path_ / "journal.jsonl");
    if (journal_.steps.empty()) notes_.push_back("The journal has no step yet.");
    if (journal_.torn)
      notes_.push_back("The last line of the journal is torn (being written, or cut off by a crash) and is left out.");
    out_["curves"] = Json::array();
    for (const Column& column : journal_.columns) {
      const bool counted = std::all_of(column.tokens.begin(), column.tokens.end(), [](int64_t t) { return t >= 0; });
      const Curve curve =
          make_curve(column.name, column.steps,
                     counted ? std::span<const int64_t>(column.tokens) : std::span<const int64_t>(), column.values);
      out_["curves"].push_back(to_json(curve));
    }
  }

  void add_events() {
    events_.insert(events_.end(), journal_.events.begin(), journal_.events.end());
    std::stable_sort(events_.begin(), events_.end(), [](const Json& a, const Json& b) {
      return a.at("step").get<int64_t>() < b.at("step").get<int64_t>();
    });
    std::map<std::string, size_t> kinds;
    out_["events"] = Json::array();
    for (const Json& event : events_)
      if (++kinds[event.at("event").get<std::string>()] <= kMostEvents) out_["events"].push_back(event);
    for (const auto& [kind, count] : kinds)
      if (count > kMostEvents)
        notes_.push_back(fmt::format("{} events '{}': the first {} are drawn.", count, kind, kMostEvents));
  }

  void add_checkpoints() {
    if (!fs::is_directory(path_ / "checkpoints")) {
      notes_.push_back("No checkpoints.");
      return;
    }
    std::vector<checkpoints::DamagedStep> damaged;
    const auto stored = checkpoints::Store(path_, checkpoints::Store::Mode::read).list(&damaged);
    out_["checkpoints"] = Json::array();
    for (const auto& s : stored) {
      Json one{{"step", s.step},
               {"kind", s.manifest.about.value("kind", "full")},
               {"bytes", s.manifest.bytes()},
               {"digest", s.manifest.about.value("digest", "")}};
      if (const int64_t tokens = journal_.tokens_at(s.step); tokens >= 0) one["tokens"] = tokens;
      out_["checkpoints"].push_back(std::move(one));
    }
    for (const auto& d : damaged)
      notes_.push_back(fmt::format("Checkpoint step {} is damaged: {}.", d.step, d.fault.message()));
    if (stored.empty()) {
      notes_.push_back("No checkpoint is stored.");
      return;
    }
    const auto weights = checkpoints::ModelWeights::open(stored.back().path);
    int64_t parameters = 0;
    for (const auto& name : weights.names()) parameters += weights.get(name).numel();
    out_["parameters"] = parameters;
    out_["model"] = parse_file(stored.back().path / "config.json");
  }

  void add_stages() {
    const config::RunConfig config = config::load(path_ / "run.yaml");
    if (const auto steps = config.total_steps()) out_["planned"] = *steps;
    out_["sampled"] = std::any_of(config.stages.begin(), config.stages.end(),
                                  [](const config::Stage& stage) { return stage.train.sample.every > 0; });
    if (!config.staged) return;
    out_["stages"] = Json::array();
    for (const config::Stage& stage : config.stages) {
      Json one{{"name", stage.name}, {"first", stage.first + 1}};
      if (stage.steps) one["last"] = stage.first + *stage.steps;
      if (const int64_t tokens = journal_.tokens_at(stage.first + 1); tokens >= 0) one["first_tokens"] = tokens;
      if (stage.steps)
        if (const int64_t tokens = journal_.tokens_at(stage.first + *stage.steps); tokens >= 0)
          one["last_tokens"] = tokens;
      one["changes"] = flat(stage.overrides);
      out_["stages"].push_back(std::move(one));
    }
  }

  void add_samples() {
    const fs::path file = path_ / "samples.jsonl";
    if (fs::exists(file))
      out_["samples"] = read_samples(file, journal_.steps.empty() ? INT64_MAX : journal_.steps.back(), notes_);
    else if (out_.value("sampled", false))
      notes_.push_back("No samples.jsonl: the run has not come to its first sample, or TensorBoard's files have them.");
  }

  void add_measures() {
    const std::function<int64_t(int64_t)> tokens_at = [&](int64_t step) { return journal_.tokens_at(step); };
    out_["measures"] = Json::array();
    std::vector<std::pair<fs::path, std::string>> folders;
    for (const char* area : {"probes", "analysis"}) folders.emplace_back(path_ / area, area);
    if (out_["kind"] == "series") folders.emplace_back(path_, "analysis");
    for (const auto& [folder, area] : folders)
      for (Json& one : read_measures(folder, area, tokens_at, notes_)) out_["measures"].push_back(std::move(one));
    if (out_["kind"] == "series") {
      if (out_["measures"].empty() && notes_.empty())
        throw std::invalid_argument(
            fmt::format("{}: found neither a run (run.yaml) nor measured series (METRIC.jsonl, probes/, analysis/); "
                        "`cairn analyze MODELS --out DIR` makes the series of models (FOLDER/step{{N}})",
                        path_.string()));
      return;
    }
    if (!fs::is_directory(path_ / "probes"))
      notes_.push_back(fmt::format("No probes: `cairn replay {} --probe NAME` measures them.", path_.string()));
    if (!fs::is_directory(path_ / "analysis"))
      notes_.push_back(fmt::format("No analysis: `cairn analyze {}` makes it.", path_.string()));
  }

  fs::path path_;
  Json out_;
  JournalData journal_;
  std::vector<Json> events_;
  std::vector<std::string> notes_;
};

}  // namespace

Json read_run(const fs::path& path) {
  if (!fs::is_directory(path))
    throw std::invalid_argument(fmt::format("{}: found {}, expected the folder of a run or of measured series",
                                            path.string(), fs::exists(path) ? "a file" : "nothing"));
  return RunReader(path).read();
}

Json differences(const Json& runs) {
  auto entries = [](const Json& run) {
    Json out = run.value("settings", Json::object());
    const Json build = run.value("build", Json::object());
    // What says when and of which files a run is, is its own.
    for (const auto& [key, value] : build.items())
      if (!value.is_structured() && key != "started" && key != "run_yaml" && key != "self") out["build." + key] = value;
    return out;
  };
  std::vector<Json> all;
  std::vector<std::string> keys;
  std::set<std::string> seen;
  for (const Json& run : runs) {
    if (run.at("kind") != "run") continue;
    all.push_back(entries(run));
    for (const auto& [key, value] : all.back().items())
      if (seen.insert(key).second) keys.push_back(key);
  }
  Json out = Json::array();
  for (const std::string& key : keys) {
    Json values = Json::array();
    bool equal = true;
    for (const Json& one : all) {
      values.push_back(one.value(key, Json()));
      equal &= one.contains(key) == all.front().contains(key) && values.back() == values.front();
    }
    if (!equal) out.push_back({{"key", key}, {"values", values}});
  }
  return out;
}

}  // namespace cairn::report
