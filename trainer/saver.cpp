#include "trainer/saver.h"

#include <stdlib.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include "trainer/checkpoint_share.h"
#include "trainer/model_io.h"
#include "trainer/run_files.h"

namespace cairn {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

// How long the first rank waits for the others' files before it gives up; a rank that is lost ends the wait at once.
constexpr std::chrono::minutes kPatience{30};
// How long another machine may take to see a file that the first rank made.
constexpr std::chrono::seconds kSight{20};

checkpoints::Retention retention_of(const config::KeepOptions& keep) {
  checkpoints::Retention r;
  r.all = keep.all;
  r.last = keep.last;
  r.every = keep.every;
  if (keep.best) r.metric = kMeanLoss, r.best = 1;
  return r;
}

std::vector<checkpoints::TensorView> views_of(const std::vector<checkpoints::TensorPiece>& tensors) {
  std::vector<checkpoints::TensorView> views;
  for (const auto& tensor : tensors) views.push_back(tensor.view);
  return views;
}

// Everything of a state that is tensors; the weights first. `owners` keeps what the views look into.
std::vector<checkpoints::TensorView> all_views(State& state, const DiskModel& model, std::vector<at::Tensor>& owners) {
  std::vector<checkpoints::TensorView> views = model.views;
  for (const auto& extra : state.extras()) {
    owners.push_back(extra.tensor.cpu());  // itself, unless it lies on a GPU
    views.push_back(view_of(extra.name, owners.back()));
  }
  return views;
}

}  // namespace

Saver::Saver(checkpoints::Store& store, const config::RunConfig& config, const data::Tokenizer& tokenizer,
             bool background)
    : store_(store), retention_(retention_of(config.checkpoints.keep)), background_(background) {
  // The tokenizer writes files; they are held as bytes, since every checkpoint carries them.
  std::string name = fs::temp_directory_path() / "cairn-tokenizer-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr)
    throw std::runtime_error(fmt::format("{}: no temporary folder can be made: {}", name, std::strerror(errno)));
  const fs::path folder = name;
  tokenizer.save(folder.string());
  for (const auto& entry : fs::directory_iterator(folder))
    tokenizer_files_.emplace_back(entry.path().filename().string(), checkpoints::read_file(entry.path()));
  std::sort(tokenizer_files_.begin(), tokenizer_files_.end());
  fs::remove_all(folder);
}

// Ranks agree on a word for this start, and that they see one folder.
void Saver::join(parallel::World& world) {
  if (world.size == 1 || !attempt_.empty()) return;
  std::random_device random;
  attempt_ = world.broadcast(fmt::format("{:08x}{:08x}", random(), random()));
  const fs::path sign = store_.folder() / fmt::format("{}{}", checkpoints::kTemporaryPrefix, attempt_);
  if (world.is_first()) checkpoints::FileWriter(sign).finish();
  world.barrier();
  const auto begin = std::chrono::steady_clock::now();
  while (!fs::exists(sign) && std::chrono::steady_clock::now() - begin < kSight)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const bool blind = world.any(!fs::exists(sign));
  if (world.is_first()) fs::remove(sign);
  if (blind)
    throw std::runtime_error(
        fmt::format("{}: a rank does not see here what the first rank wrote: every rank writes its part of a "
                    "checkpoint, so the run's folder has to lie on a file system that all of them share",
                    store_.folder().string()));
}

void Saver::reserve(State& state) {
  join(state.world());
  if (state.world().size > 1) return writer_.reserve(views_of(checkpoint_share(state).tensors));
  const DiskModel model = disk_model(state.model());
  std::vector<at::Tensor> owners;
  writer_.reserve(all_views(state, model, owners));
}

void Saver::save(State& state, const Json& state_json, const Json& about) {
  join(state.world());
  if (state.world().size == 1)
    save_alone(state, state_json, about);
  else
    save_shared(state, state_json, about);
  if (!background_) writer_.drain();
}

void Saver::save_alone(State& state, const Json& state_json, const Json& about) {
  const DiskModel model = disk_model(state.model());
  const size_t model_count = model.views.size();
  const std::string config = config_text(state.model()), generation = generation_config_text(state.model());
  const int64_t step = state.step;
  auto write = [this, step, model_count, config, generation, state_json,
                about](std::span<const checkpoints::TensorView> snapshot) {
    checkpoints::CheckpointContents contents;
    contents.model.assign(snapshot.begin(), snapshot.begin() + model_count);
    contents.optimizer.assign(snapshot.begin() + model_count, snapshot.end());
    contents.config = config;
    contents.state = state_json;
    contents.files = tokenizer_files_;
    contents.files.emplace_back("generation_config.json", generation);
    contents.about = about;
    if (before_commit) before_commit();
    store_.commit(step, contents);
    store_.retain(retention_);
  };
  std::vector<at::Tensor> owners;
  writer_.save(all_views(state, model, owners), write);
}

void Saver::save_shared(State& state, const Json& state_json, const Json& about) {
  CheckpointShare share = checkpoint_share(state);
  const std::vector<checkpoints::TensorView> views = views_of(share.tensors);
  const parallel::World& world = state.world();
  std::vector<std::pair<std::string, std::string>> files;
  if (world.is_first()) {
    files = tokenizer_files_;
    files.emplace_back("config.json", config_text(state.model()));
    files.emplace_back("generation_config.json", generation_config_text(state.model()));
    files.emplace_back("training/state.json", state_json.dump(2) + "\n");
  }
  Json notes = {{"step", state.step}};
  notes.update(about);
  auto write = [this, step = state.step, &world, tensors = std::move(share.tensors), parts = std::move(share.files),
                files = std::move(files), notes = std::move(notes)](std::span<const checkpoints::TensorView> snapshot) {
    checkpoints::SharedFolder folder(store_.path_of(step), {world.rank, world.size, attempt_});
    for (const auto& [path, bytes] : files) folder.write(path, bytes);
    for (const CheckpointShare::File& part : parts) {
      std::vector<checkpoints::TensorPiece> copies(tensors.begin() + part.first,
                                                   tensors.begin() + part.first + part.count);
      for (size_t i = 0; i < part.count; ++i) copies[i].view = snapshot[part.first + i];
      folder.write_tensors(part.stem, part.path, copies);
    }
    if (world.is_first() && before_commit) before_commit();
    folder.commit(notes, kPatience, [&world] { world.check(); });
    if (world.is_first()) store_.retain(retention_);
  };
  writer_.save(views, std::move(write));
}

nlohmann::ordered_json load_state(State& state, const fs::path& folder) {
  load_weights(state.model(), checkpoints::ModelWeights::open(folder), folder.string());
  const auto saved = checkpoints::PiecedTensors::open(folder / "training" / "optimizer");
  state.load_extras([&](const std::string& name) {
    at::Tensor whole = at::empty({saved.numel(name)}, at::TensorOptions().dtype(torch_dtype(saved.dtype(name))));
    saved.read(name, 0, whole.numel(), whole.mutable_data_ptr());
    return whole;
  });
  auto json = Json::parse(checkpoints::read_file(folder / "training" / "state.json"));
  state.step = json.at("step").get<int64_t>();
  state.set_updates(json.at("updates"));
  return json;
}

}  // namespace cairn
