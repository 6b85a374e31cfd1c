#include "trainer/fork.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include "checkpoints/file.h"
#include "checkpoints/journal.h"
#include "trainer/address_cache.h"
#include "trainer/fork_config.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// The folder of the child, which goes again where the fork fails. A hidden file says that a fork is at work here, or
// was when it was killed; the next writer of the run removes it.
class NewFolder {
 public:
  // Throws std::runtime_error where the folder holds something already, or another process writes it; then nothing of
  // it is touched.
  NewFolder(fs::path folder, const RebuildTalk& talk) : folder_(std::move(folder)), existed_(fs::exists(folder_)) {
    const auto refuse = [&] {
      throw std::runtime_error(fmt::format(
          "{} is not empty: a fork is a new run, choose another folder with --run, or delete it", folder_.string()));
    };
    if (existed_ && (!fs::is_directory(folder_) || (!fs::is_empty(folder_) && !is_left(folder_)))) refuse();
    bool left = existed_ && is_left(folder_);
    store_.emplace(folder_, checkpoints::Store::Mode::write);
    // Another fork may have come and gone until the lock was had.
    const auto& leftovers = store_->leftovers();
    left = left || std::find(leftovers.begin(), leftovers.end(), mark().string()) != leftovers.end();
    if (fs::exists(folder_ / "run.yaml")) refuse();
    checkpoints::replace_file(mark(), "");
    if (!left) return;
    if (talk.say)
      talk.say(fmt::format("{} holds what a fork left that was ended before it was done: it is made anew",
                           folder_.string()));
    clear(true);
  }
  ~NewFolder() {
    if (kept_) return;
    std::error_code ignored;
    if (existed_) {
      clear(false);
    } else {
      fs::remove_all(folder_, ignored);
    }
  }
  checkpoints::Store& store() { return *store_; }
  // From here on it is a run.
  void keep() {
    kept_ = true;
    std::error_code ignored;
    fs::remove(mark(), ignored);
  }

 private:
  static bool is_left(const fs::path& folder) { return fs::exists(folder / kMark) && !fs::exists(folder / "run.yaml"); }
  fs::path mark() const { return folder_ / kMark; }
  // Removes all that lies in it; `goes_on`: but for the lock, the mark and the folder of the checkpoints.
  void clear(bool goes_on) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder_, ignored)) {
      const std::string name = entry.path().filename().string();
      if (goes_on && (name == ".lock" || name == kMark)) continue;
      if (!goes_on || name != "checkpoints") {
        fs::remove_all(entry.path(), ignored);
        continue;
      }
      for (const auto& step : fs::directory_iterator(entry.path(), ignored)) fs::remove_all(step.path(), ignored);
    }
  }

  static constexpr const char* kMark = ".tmp-fork";  // a name that checkpoints::Store takes for a leftover

  fs::path folder_;
  bool existed_, kept_ = false;
  std::optional<checkpoints::Store> store_;  // the lock: until the folder is what it is to be
};

void check_shapes(const Stepper& stepper, Stepper& from) {
  const models::Decoder decoder(stepper.decoder_config());  // memory is reserved, not touched
  const auto& wanted = decoder.parameters();
  const auto& there = from.state().model().parameters();
  const auto shape = [](const auto& parameter) {
    return fmt::format("[{}]", fmt::join(parameter.value().sizes(), ", "));
  };
  for (size_t i = 0; i < std::max(wanted.all().size(), there.all().size()); ++i) {
    const bool both = i < wanted.all().size() && i < there.all().size();
    if (both && wanted.all()[i].name == there.all()[i].name && shape(wanted.all()[i]) == shape(there.all()[i]))
      continue;
    const auto& example = i < wanted.all().size() ? wanted.all()[i] : there.all()[i];
    stepper.config().fail("model", fmt::format("found a model of another shape (at {} {}), expected the parent's: a "
                                               "fork goes on with its weights",
                                               example.name, shape(example)));
  }
}

// The lines up to `step`, byte for byte.
std::string journal_until(const fs::path& journal, int64_t step) {
  uint64_t end = 0;
  for (const auto& line : checkpoints::index_journal(journal).lines) {
    if (line.step <= step) end = line.offset + line.length + 1;
  }
  return end > 0 ? checkpoints::read_file(journal).substr(0, end) : "";
}

// The parent's build.json as it was at `step`, and what is the child's own.
Json child_build(const RunRecord& record, int64_t step, const std::string& digest, const config::RunConfig& config) {
  Json build = record.build();
  retire_settings(build, step);
  build["settings"] = config::to_json(config);
  build.erase("run_yaml");
  for (const char* list : {"changes", "machines", "resumptions"}) {
    Json kept = Json::array();
    for (const Json& entry : build.value(list, Json::array()))
      if (entry.value("after_step", int64_t{0}) < step) kept.push_back(entry);
    build[list] = kept;
    if (kept.empty()) build.erase(list);
  }
  build["parent"] = {
      {"run", fs::absolute(record.run()).lexically_normal().string()}, {"step", step}, {"digest", digest}};
  return build;
}

// The settings of the step after `step`, without the stages that say so.
Json in_force(const config::RunConfig& config, int64_t step) {
  const config::Stage& stage = config.stage_of(step + 1);
  config::RunConfig flat = config;
  flat.staged = false;
  flat.data = stage.data, flat.optim = stage.optim, flat.train = stage.train;
  flat.train.steps = config.total_steps();
  return config::to_json(flat);
}

std::vector<Json> differences(const Json& was_tree, const Json& now_tree) {
  const Json was = was_tree.flatten(), now = now_tree.flatten();
  std::set<std::string> keys;
  for (const Json* side : {&was, &now})
    for (const auto& [key, value] : side->items()) keys.insert(key);
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

// One write: a reader sees the whole line or none.
void append_fork(const fs::path& parent, const fs::path& child, int64_t step, const RebuildTalk& talk) {
  const fs::path path = parent / "forks.jsonl";
  const std::string line = Json{{"run", fs::absolute(child).lexically_normal().string()}, {"step", step}}.dump() + "\n";
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const bool written = fd >= 0 && ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  if (!written && talk.say)
    talk.say(fmt::format("{} cannot be written ({}): the parent does not know of this fork", path.string(),
                         std::strerror(errno)));
  if (fd >= 0) ::close(fd);
}

}  // namespace

ForkReport fork_run(const ForkOptions& options) {
  const RunRecord record(options.run);
  const int64_t step = options.step;
  if (!record.has_journal()) {
    throw std::runtime_error(fmt::format(
        "{}@{}: {} has no journal.jsonl, whose lines up to there are the fork's, too: put it back, or start "
        "a new run from the weights of a stored step (model.from)",
        options.run.string(), step, options.run.string()));
  }
  check_reach(record, step);
  const std::string yaml_name = (options.run / "run.yaml").string();
  const Json settings = record.settings_json(step + 1);
  fork_config(settings, step, INT64_MAX, options.changes, yaml_name);  // mistakes end here, before any work
  NewFolder folder(options.child, options.talk);  // two forks into one at once: the second is refused

  Replayer replayer(record);
  const double elapsed = rebuild(replayer, step, options.talk);
  Stepper& from = replayer.stepper();
  ForkReport report{.parent_digest = from.state().digest().hex()};
  const config::RunConfig config = fork_config(settings, step, from.last(), options.changes, yaml_name);
  report.changed = differences(in_force(config::parse(settings.dump(), yaml_name), step), in_force(config, step));

  config::RunConfig alone = config;
  alone.parallel = {};
  const auto world = parallel::World::join(parallel::Launch{});
  Stepper stepper(alone, *world);
  stepper.prepare({}, options.run);
  check_shapes(stepper, from);
  stepper.open();
  stepper.take(from);
  stepper.enter_stage(step + 1);
  report.digest = stepper.state().digest().hex();
  write_state(folder.store().path_of(step), stepper, Part::full, elapsed, [&] { confirm(replayer, step); });
  checkpoints::replace_file(options.child / "journal.jsonl", journal_until(options.run / "journal.jsonl", step));
  write_build(options.child, child_build(record, step, report.parent_digest, config));
  checkpoints::replace_file(options.child / "run.yaml", config::to_yaml(config));  // this makes it a run
  folder.keep();
  append_fork(options.run, options.child, step, options.talk);
  return report;
}

}  // namespace cairn
