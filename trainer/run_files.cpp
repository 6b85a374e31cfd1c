#include "trainer/run_files.h"

#include <unistd.h>

#include "models/families/family.h"
#include "trainer/model_io.h"

namespace cairn {
namespace fs = std::filesystem;
namespace {

using checkpoints::read_file;

checkpoints::Retention retention_of(const config::KeepOptions& keep) {
  checkpoints::Retention r;
  r.all = keep.all;
  r.last = keep.last;
  r.every = keep.every;
  if (keep.best) r.metric = "validation_nll", r.best = 1;
  return r;
}

}  // namespace

checkpoints::Schedule checkpoint_schedule(const config::CheckpointOptions& options) {
  return {.every = options.every,
          .log_spaced = options.log_spaced ? checkpoints::Spacing::doubling : checkpoints::Spacing::none,
          .at = options.at,
          .at_end = options.at_end};
}

void write_run_files(const fs::path& run, const config::RunConfig& config, const nlohmann::ordered_json& build) {
  checkpoints::replace_file(run / "run.yaml", config::to_yaml(config));
  checkpoints::replace_file(run / "build.json", build.dump(2) + "\n");
}

Saver::Saver(checkpoints::Store& store, const config::RunConfig& config, const data::Tokenizer& tokenizer,
             bool background)
    : store_(store), retention_(retention_of(config.checkpoints.keep)), background_(background) {
  // The tokenizer writes files; they are held as bytes, since every checkpoint carries them.
  const fs::path folder = fs::temp_directory_path() / fmt::format("cairn-tokenizer-{}", getpid());
  fs::create_directories(folder);
  tokenizer.save(folder.string());
  for (const auto& entry : fs::directory_iterator(folder))
    tokenizer_files_.emplace_back(entry.path().filename().string(), read_file(entry.path()));
  std::sort(tokenizer_files_.begin(), tokenizer_files_.end());
  fs::remove_all(folder);
}

void Saver::reserve(State& state) {
  const DiskModel model = disk_model(state.model());
  std::vector<checkpoints::TensorView> views = model.views;
  for (const auto& extra : state.extras()) views.push_back(view_of(extra.name, extra.tensor));
  writer_.reserve(views);
}

void Saver::save(State& state, const nlohmann::ordered_json& state_json, const nlohmann::ordered_json& about,
                 bool writes) {
  const std::vector<StateTensor> extras = state.extras();
  if (!writes) return;
  const DiskModel model = disk_model(state.model());
  std::vector<checkpoints::TensorView> views = model.views;
  for (const auto& extra : extras) views.push_back(view_of(extra.name, extra.tensor));
  const size_t model_count = model.views.size();
  const std::string config = config_text(state.model()), generation = generation_config_text(state.model());
  const int64_t step = state.step;
  auto write = [this, step, model_count, config, generation, state_json, about](std::span<const checkpoints::TensorView> snapshot) {
    checkpoints::CheckpointContents contents;
    contents.model.assign(snapshot.begin(), snapshot.begin() + model_count);
    contents.optimizer.assign(snapshot.begin() + model_count, snapshot.end());
    contents.config = config;
    contents.state = state_json;
    contents.files = tokenizer_files_;
    contents.files.emplace_back("generation_config.json", generation);
    contents.about = about;
    store_.commit(step, contents);
    store_.retain(retention_);
  };
  writer_.save(views, write);
  if (!background_) writer_.drain();
}

nlohmann::ordered_json load_state(State& state, const fs::path& folder) {
  load_weights(state.model(), checkpoints::ModelWeights::open(folder), folder.string());
  const auto saved = checkpoints::Safetensors::open(folder / "training" / "optimizer.safetensors");
  state.load_extras([&](const std::string& name) { return tensor_of(saved.get(name)); });
  auto json = nlohmann::ordered_json::parse(read_file(folder / "training" / "state.json"));
  state.step = json.at("step").get<int64_t>();
  state.optimizer().set_step(json.at("updates").get<int64_t>());
  return json;
}

fs::path model_folder(const std::string& address) {
  const fs::path path(address);
  if (fs::exists(path / "config.json")) return path;
  // RUN, RUN@last, RUN@N: a stored step of a run.
  std::string run = address;
  std::string step = "last";
  if (const size_t at = address.rfind('@'); at != std::string::npos)
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
