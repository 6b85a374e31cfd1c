#include "trainer/replay_record.h"

#include "checkpoints/file.h"
#include "checkpoints/pieces.h"
#include "trainer/address_cache.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormer = "former_settings";

bool ended(const Json& line) {
  for (const Json& event : line.value("events", Json::array())) {
    if (event.value("action", "") == "stop") return true;
  }
  return false;
}

bool is_full(const fs::path& folder) {
  return fs::exists(folder / "training" / "state.json") &&
         checkpoints::PiecedTensors::stored(folder / "training" / "optimizer");
}

void add_bases(const fs::path& folder, int64_t step, std::vector<RunRecord::Base>& bases) {
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    const auto found = checkpoints::Store::step_of(it->path().filename().string());
    if (found && *found <= step && is_full(it->path())) bases.push_back({*found, it->path()});
  }
}

}  // namespace

RunRecord::RunRecord(fs::path run) : run_(std::move(run)) {
  if (!fs::exists(run_ / "run.yaml"))
    throw std::runtime_error(fmt::format("{}: no run here (no run.yaml)", run_.string()));
  build_ = read_build(run_);
  if (build_.contains("parent")) {
    const Json& parent = build_.at("parent");
    parent_ = Parent{parent.at("run").get<std::string>(), parent.at("step").get<int64_t>(), parent.value("digest", "")};
  }
  const fs::path journal = run_ / "journal.jsonl";
  has_journal_ = fs::exists(journal);
  if (!has_journal_) return;
  index_ = checkpoints::index_journal(journal);
  journal_ = checkpoints::read_file(journal);
  // A run that trains may have gone back in between, to where its resumption began.
  while (!index_.lines.empty() && index_.lines.back().offset + index_.lines.back().length > journal_.size())
    index_.lines.pop_back();
  if (index_.lines.empty()) return;
  last_step_ = index_.lines.back().step;
  const auto last = lines(last_step_, last_step_);
  if (!last.empty() && ended(last.begin()->second)) last_step_ -= 1;
}

std::map<int64_t, Json> RunRecord::lines(int64_t from, int64_t to) const {
  std::map<int64_t, Json> lines;
  const auto before = [](const auto& line, int64_t step) { return line.step < step; };
  for (auto at = std::lower_bound(index_.lines.begin(), index_.lines.end(), from, before);
       at != index_.lines.end() && at->step <= to; ++at) {
    const char* begin = journal_.data() + at->offset;
    Json line = Json::parse(begin, begin + at->length);
    line.erase("crc");
    lines[at->step] = std::move(line);
  }
  return lines;
}

std::string RunRecord::digest_of(int64_t step) const {
  const auto found = lines(step, step);
  if (found.empty()) return "";
  const Json digest = found.begin()->second.value("digest", Json());
  return digest.is_string() ? digest.get<std::string>() : "";
}

int64_t RunRecord::witness(int64_t step) const {
  for (int64_t n = std::max<int64_t>(step, 1); n <= last_step_; ++n)
    if (!digest_of(n).empty()) return n;
  return 0;
}

Json RunRecord::settings_json(int64_t step) const {
  for (const Json& former : build_.value(kFormer, Json::array())) {
    if (step <= former.at("last_step").get<int64_t>()) return former.at("settings");
  }
  // What run.yaml says may have been edited since: build.json has what the steps were made with.
  if (build_.contains("settings")) return build_.at("settings");
  return config::to_json(config::load(run_ / "run.yaml"));
}

config::RunConfig RunRecord::settings_at(int64_t step) const {
  config::RunConfig config = config::parse(settings_json(step).dump(), (run_ / "build.json").string());
  config.parallel = {};  // one rank makes the lanes of all
  // `auto` was what the machine had then.
  if (machine_after(build_, step - 1).value("device", "cpu").starts_with("cpu")) {
    config.train.device = "cpu";
    for (auto& stage : config.stages) stage.train.device = "cpu";
  }
  return config;
}

int64_t RunRecord::settings_until(int64_t step) const {
  for (const Json& former : build_.value(kFormer, Json::array())) {
    const auto last = former.at("last_step").get<int64_t>();
    if (step <= last) return last;
  }
  return INT64_MAX;
}

std::vector<RunRecord::Base> RunRecord::bases(int64_t step, bool cached) const {
  std::vector<Base> bases;
  add_bases(run_ / "checkpoints", step, bases);
  if (cached) add_bases(cache_folder(run_), step, bases);
  // Before its first state (which may have another optimizer) a fork's states are its parent's.
  if (parent_ && fs::exists(parent_->run / "run.yaml")) {
    try {
      for (Base& base : RunRecord(parent_->run).bases(std::min(step, parent_->step - 1), false))
        bases.push_back(std::move(base));
    } catch (const std::exception&) {  // a parent that is damaged or gone is not needed
    }
  }
  std::stable_sort(bases.begin(), bases.end(), [](const Base& a, const Base& b) { return a.step > b.step; });
  return bases;
}

std::map<int64_t, fs::path> RunRecord::stored() const {
  std::map<int64_t, fs::path> stored;
  std::error_code error;
  for (auto it = fs::directory_iterator(run_ / "checkpoints", error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    if (const auto step = checkpoints::Store::step_of(it->path().filename().string())) stored[*step] = it->path();
  }
  return stored;
}

void retire_settings(Json& build, int64_t step) {
  Json former = Json::array();
  for (const Json& entry : build.value(kFormer, Json::array())) {
    if (entry.at("last_step").get<int64_t>() < step) former.push_back(entry);
  }
  // The first that reached beyond made the steps up to here; without one, the settings of now did.
  Json settings = build.value("settings", Json());
  for (const Json& entry : build.value(kFormer, Json::array())) {
    if (entry.at("last_step").get<int64_t>() < step) continue;
    settings = entry.at("settings");
    break;
  }
  if (step > 0 && !settings.is_null()) former.push_back({{"last_step", step}, {"settings", settings}});
  build[kFormer] = former;
  if (former.empty()) build.erase(kFormer);
}

void note_settings(Json& build, int64_t step, const Json& settings) {
  const Json former = build.value(kFormer, Json::array());
  const bool beyond = std::any_of(former.begin(), former.end(),
                                  [&](const Json& entry) { return entry.at("last_step").get<int64_t>() > step; });
  if (beyond || (build.contains("settings") && build.at("settings") != settings)) retire_settings(build, step);
  build["settings"] = settings;
}

double seconds_of(const std::map<int64_t, Json>& lines) {
  double seconds = 0;
  for (const auto& [step, line] : lines) {
    if (line.contains("seconds") && line.at("seconds").is_number()) seconds += line.at("seconds").get<double>();
  }
  return seconds;
}

}  // namespace cairn
