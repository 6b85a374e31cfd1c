#include "checkpoints/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <system_error>

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";

// Steps of the folders that have a checkpoint's name, whatever they hold; ascending.
std::vector<int64_t> named_steps(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error))
    if (const auto step = Store::step_of(it->path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace

std::optional<double> StoredStep::metric(const std::string& name) const {
  const auto metrics = manifest.about.find("metrics");
  if (metrics == manifest.about.end() || !metrics->is_object()) return std::nullopt;
  const auto value = metrics->find(name);
  if (value == metrics->end() || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

Store::Store(fs::path run, Mode mode) : run_(std::move(run)) {
  if (mode == Mode::read) {
    if (!fs::is_directory(run_))
      throw std::runtime_error(fmt::format("{} is not a run: no such folder", run_.string()));
    return;
  }
  lock_.emplace(run_);
  std::error_code error;
  fs::create_directories(folder(), error);
  if (error)
    throw std::runtime_error(fmt::format("cannot create the folder {}: {}", folder().string(), error.message()));
  for (const fs::path& parent : {run_, folder()})
    for (const auto& entry : fs::directory_iterator(parent)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(kTemporaryPrefix) || name.starts_with(kDeletedPrefix))
        leftovers_.push_back(entry.path().string());
    }
  for (const std::string& path : leftovers_) {
    // A rank that outlives the writer of before by a moment may still be writing there: what it leaves harms nobody.
    std::error_code busy;
    fs::remove_all(path, busy);
  }
}

std::string Store::folder_name(int64_t step) {
  if (step < 0) throw std::invalid_argument(fmt::format("step {} is negative", step));
  return fmt::format("{}{:08}", kPrefix, step);
}

std::optional<int64_t> Store::step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [at, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || at != end || step < 0 || folder_name(step) != name) return std::nullopt;
  return step;
}

fs::path Store::path_of(int64_t step) const { return folder() / folder_name(step); }

std::vector<StoredStep> Store::list(std::vector<DamagedStep>* damaged) const {
  std::vector<StoredStep> steps;
  for (int64_t step : named_steps(folder())) {
    const fs::path path = path_of(step);
    if (const auto fault = verify_folder(path, Depth::sizes)) {
      if (damaged) damaged->push_back({step, *fault});
    } else {
      steps.push_back({step, path, read_manifest(path)});
    }
  }
  return steps;
}

Store::Newest Store::newest_valid(int64_t at_most) const {
  Newest newest;
  const auto steps = named_steps(folder());
  for (auto it = steps.rbegin(); it != steps.rend() && !newest.step; ++it) {
    if (*it > at_most) continue;
    const fs::path path = path_of(*it);
    // A file besides those written does no harm here; `verify` names it.
    if (const auto fault = verify_folder(path); fault && fault->problem != "extra") {
      newest.damaged.push_back({*it, *fault});
    } else {
      newest.step = StoredStep{*it, path, read_manifest(path)};
    }
  }
  return newest;
}

void Store::require_writer(const char* what) const {
  if (!lock_) throw std::logic_error(fmt::format("{}: cannot {} in a run opened for reading", run_.string(), what));
}

StoredStep Store::commit(int64_t step, const CheckpointContents& contents) {
  require_writer("commit");
  FolderCommit folder(path_of(step));
  if (!contents.config.empty()) folder.write("config.json", contents.config);
  for (const auto& [path, bytes] : contents.files) folder.write(path, bytes);
  folder.write_model(contents.model, contents.metadata, contents.shard_bytes);
  if (!contents.optimizer.empty()) folder.write_safetensors("training/optimizer.safetensors", contents.optimizer);
  if (!contents.state.is_null()) folder.write("training/state.json", contents.state.dump(2) + "\n");
  nlohmann::ordered_json about = {{"step", step}};
  for (const auto& [key, value] : contents.about.items()) about[key] = value;
  return {step, path_of(step), folder.commit(std::move(about))};
}

void Store::delete_folder(const fs::path& path) {
  const fs::path hidden = path.parent_path() / (kDeletedPrefix + path.filename().string());
  fs::remove_all(hidden);
  fs::rename(path, hidden);
  sync_folder(path.parent_path());  // from here on the step is not listed, crash or not
  fs::remove_all(hidden);
}

void Store::remove(int64_t step) {
  require_writer("delete a checkpoint");
  const auto stored = list();
  if (!stored.empty() && stored.back().step == step)
    throw std::invalid_argument(
        fmt::format("{}: step {} is the newest checkpoint, which is never deleted", run_.string(), step));
  if (!fs::exists(path_of(step)))
    throw std::invalid_argument(fmt::format("{}: step {} is not stored", run_.string(), step));
  delete_folder(path_of(step));
}

std::vector<int64_t> Store::retain(const Retention& retention) {
  require_writer("delete checkpoints");
  if (retention.all) return {};
  const auto stored = list();
  std::vector<int64_t> steps;
  for (const StoredStep& s : stored) steps.push_back(s.step);
  const auto value = [&](int64_t step) -> std::optional<double> {
    const auto it = std::lower_bound(steps.begin(), steps.end(), step);
    return stored[it - steps.begin()].metric(retention.metric);
  };
  const auto gone = retention.to_delete(steps, value);
  for (int64_t step : gone) delete_folder(path_of(step));
  return gone;
}

std::vector<int64_t> Store::truncate_after(int64_t step) {
  require_writer("delete checkpoints");
  std::vector<int64_t> gone;
  const auto steps = named_steps(folder());
  // Newest first: a crash on the way leaves a run without gaps.
  for (auto it = steps.rbegin(); it != steps.rend() && *it > step; ++it) {
    delete_folder(path_of(*it));
    gone.push_back(*it);
  }
  return gone;
}

}  // namespace cairn::checkpoints
