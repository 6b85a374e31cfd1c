#include "trainer/analysis/states.h"

#include <xxhash.h>

#include <set>

#include "checkpoints/analysis/elements.h"
#include "checkpoints/file.h"
#include "checkpoints/gguf.h"
#include "checkpoints/manifest.h"
#include "trainer/analysis/trajectory_states.h"
#include "trainer/model_io.h"
#include "trainer/past_data.h"

namespace cairn::analysis {
namespace {

namespace fs = std::filesystem;

std::string hex_of(const XXH128_hash_t& hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

std::string digest_of(const std::string& text) { return hex_of(XXH3_128bits(text.data(), text.size())); }

class FolderWeights : public Weights {
 public:
  explicit FolderWeights(const fs::path& folder)
      : weights_(std::make_shared<checkpoints::ModelWeights>(open_weights(folder))) {
    for (const std::string& name : weights_->names())
      if (checkpoints::is_floating(weights_->info(name).dtype)) names_.push_back(name);
    std::sort(names_.begin(), names_.end());
  }
  const std::vector<std::string>& names() const override { return names_; }
  Tensor get(const std::string& name) const override { return {weights_->get(name), weights_}; }
  std::vector<int64_t> shape(const std::string& name) const override { return weights_->info(name).shape; }

 private:
  std::shared_ptr<checkpoints::ModelWeights> weights_;
  std::vector<std::string> names_;
};

// What decides a model's numbers: the weights' files and config.json.
std::string folder_key(const fs::path& folder) {
  std::vector<checkpoints::FileEntry> files;
  if (checkpoints::is_gguf(folder)) {
    files.push_back(checkpoints::digest_file(folder));
  } else if (fs::exists(folder / checkpoints::kManifestName)) {
    for (const auto& file : checkpoints::check_folder(folder, checkpoints::Depth::sizes).files) {
      const bool on_top = file.path.find('/') == std::string::npos;
      if (on_top && (file.path.ends_with(".safetensors") || file.path == "config.json")) files.push_back(file);
    }
  } else {
    const auto weights = checkpoints::ModelWeights::open(folder);
    for (const auto& shard : weights.files()) files.push_back(checkpoints::digest_file(shard.path()));
    files.push_back(checkpoints::digest_file(folder / "config.json"));
  }
  std::string text;
  for (const auto& file : files) text += file.path + " " + file.xxh3 + "\n";
  return digest_of(text);
}

// The shapes of a state's tensors are those of the first one.
void check_equal_tensors(const std::string& first_address, const Weights& first, const std::string& address,
                         const Weights& other) {
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error(
        fmt::format("{}: {}; {} is the first of the set, and the states of a set have the same tensors", address, what,
                    first_address));
  };
  std::vector<std::string> lacking, extra;
  std::set_difference(first.names().begin(), first.names().end(), other.names().begin(), other.names().end(),
                      std::back_inserter(lacking));
  std::set_difference(other.names().begin(), other.names().end(), first.names().begin(), first.names().end(),
                      std::back_inserter(extra));
  if (!lacking.empty()) refuse(fmt::format("tensor {} is missing", lacking.front()));
  if (!extra.empty()) refuse(fmt::format("tensor {} is not expected", extra.front()));
  for (const std::string& name : first.names()) {
    const auto expected = first.shape(name), found = other.shape(name);
    if (found != expected)
      refuse(fmt::format("tensor {} has shape [{}], expected [{}]", name, fmt::join(found, ", "),
                         fmt::join(expected, ", ")));
  }
}

data::Batch row_of(const std::vector<int32_t>& ids, int64_t begin, int64_t end) {
  data::Batch batch{.rows = 1, .context = end - begin};
  for (int64_t i = begin; i < end; ++i) {
    batch.inputs.push_back(ids[i]);
    batch.targets.push_back(ids[i + 1]);
    batch.positions.push_back(static_cast<int32_t>(i - begin));
    batch.segments.push_back(0);
  }
  return batch;
}

void append(data::Batch& batch, const data::Batch& row) {
  batch.rows += row.rows;
  const auto add = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  add(batch.inputs, row.inputs);
  add(batch.targets, row.targets);
  add(batch.positions, row.positions);
  add(batch.segments, row.segments);
}

constexpr int64_t kRowsOfBatch = 8;

}  // namespace

struct States::Shared {
  std::mutex mutex;
  std::map<std::string, std::string> keys;  // by address
  std::shared_ptr<const TrajectoryStates> trajectory;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::unique_ptr<FixedText> text;
  std::unique_ptr<PastData> data;
};

States::~States() = default;
States::States(const States&) = default;
States::States() = default;

States States::of_trajectory(const fs::path& run, Settings settings) {
  States all;
  all.settings_ = std::move(settings);
  all.run_ = run;
  all.shared_ = std::make_shared<Shared>();
  all.shared_->trajectory = open_trajectory(run);
  if (!all.shared_->trajectory || all.shared_->trajectory->steps().empty())
    throw std::runtime_error(fmt::format("{}: neither a committed checkpoint nor a step in trajectory/", run.string()));
  for (const int64_t step : all.shared_->trajectory->steps())
    all.states_.push_back({.address = fmt::format("{}@{}", run.string(), step), .step = step});
  all.common_ = all.shared_->trajectory->dtype();
  all.notes_.push_back(fmt::format("{} has no checkpoint: the states are the {} of its trajectory, {} tensors each",
                                   run.string(), all.size(), all.shared_->trajectory->names().size()));
  return all;
}

States::States(std::vector<Located> located, Settings settings, bool trajectory)
    : settings_(std::move(settings)), shared_(std::make_shared<Shared>()) {
  if (located.empty()) throw std::invalid_argument("the set is empty: there is no state to analyse");
  run_ = located.front().run;
  for (const Located& one : located)
    if (one.run != run_) run_.clear();
  std::map<int64_t, std::string> steps;
  for (size_t i = 0; i < located.size(); ++i) {
    const Located& one = located[i];
    const int64_t step = one.step.value_or(static_cast<int64_t>(i));
    states_.push_back({.address = one.address, .step = step, .folder = one.folder});
    const auto [before, fresh] = steps.emplace(step, one.address);
    if (!fresh)
      throw std::invalid_argument(
          fmt::format("{} and {} are both step {}: a set has one state a step", before->second, one.address, step));
  }
  if (trajectory && !run_.empty()) join_trajectory();
  std::stable_sort(states_.begin(), states_.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  const auto first = weights(0);
  bool layout_known = false;  // a trajectory has one
  for (size_t i = 1; i < states_.size(); ++i) {
    if (states_[i].folder.empty() && std::exchange(layout_known, true)) continue;
    check_equal_tensors(states_[0].address, *first, states_[i].address, *weights(i));
  }
}

void States::join_trajectory() {
  const auto trajectory = open_trajectory(run_);
  if (!trajectory) return;
  const size_t expected = weights(0)->names().size();
  if (trajectory->names() != weights(0)->names()) {
    notes_.push_back(fmt::format("{}/trajectory holds {} of the model's {} tensors; it is left aside", run_.string(),
                                 trajectory->names().size(), expected));
    return;
  }
  std::set<int64_t> stored;
  for (const StateInfo& state : states_) stored.insert(state.step);
  for (const int64_t step : trajectory->steps()) {
    if (stored.contains(step)) continue;
    states_.push_back({.address = fmt::format("{}@{}", run_.string(), step), .step = step});
    common_ = trajectory->dtype();
  }
  shared_->trajectory = trajectory;
}

std::string States::key(size_t i) const {
  const StateInfo& state = states_[i];
  {
    const std::lock_guard lock(shared_->mutex);
    if (const auto known = shared_->keys.find(state.address); known != shared_->keys.end()) return known->second;
  }
  const std::string key = state.folder.empty() ? shared_->trajectory->key(state.step) : folder_key(state.folder);
  const std::lock_guard lock(shared_->mutex);
  return shared_->keys[state.address] = key;
}

std::unique_ptr<Weights> States::weights(size_t i) const {
  if (!states_[i].folder.empty()) return std::make_unique<FolderWeights>(states_[i].folder);
  return shared_->trajectory->weights(states_[i].step);
}

std::unique_ptr<models::Decoder> States::model(size_t i) const { return load_model(states_[i].folder.string()); }

std::shared_ptr<const data::Tokenizer> States::tokenizer() const {
  const std::lock_guard lock(shared_->mutex);
  if (!shared_->tokenizer) {
    for (const StateInfo& state : states_) {
      if (state.folder.empty()) continue;
      shared_->tokenizer = data::Tokenizer::from_file(state.folder.string());
      break;
    }
    if (!shared_->tokenizer) throw std::invalid_argument("no state has a folder, so there is no tokenizer");
  }
  return shared_->tokenizer;
}

const data::Dataset& States::data(std::optional<int64_t> step) const {
  const std::lock_guard lock(shared_->mutex);
  if (!shared_->data) {
    if (run_.empty())
      throw std::invalid_argument("these states are not those of one run, so there are no training data to ask about");
    shared_->data = std::make_unique<PastData>(run_);
  }
  return step ? *shared_->data->of(*step).data : *shared_->data->now().data;
}

const FixedText& States::text() const {
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->text) return *shared_->text;
  }
  const auto folder = std::find_if(states_.begin(), states_.end(), [](const auto& s) { return !s.folder.empty(); });
  if (folder == states_.end()) throw std::invalid_argument("no state has a folder, so no model can read the text");
  const int64_t longest =
      models::decoder_config(read_model_config(folder->folder.string()), false).max_position_embeddings;
  const int64_t context = settings_.context ? settings_.context : std::min<int64_t>(256, longest);
  if (context > longest)
    throw std::invalid_argument(
        fmt::format("context: found {}, expected at most {}, the model's max_position_embeddings", context, longest));
  auto text = std::make_unique<FixedText>();
  if (!settings_.text.empty()) {
    std::vector<int32_t> ids = tokenizer()->encode(checkpoints::read_file(settings_.text), true);
    if (ids.size() < 2)
      throw std::invalid_argument(
          fmt::format("{}: {} tokens; at least 2 are needed to predict one", settings_.text, ids.size()));
    const int64_t last = std::min<int64_t>(settings_.tokens, static_cast<int64_t>(ids.size()) - 1);
    for (int64_t begin = 0; begin < last; begin += context) {
      const data::Batch row = row_of(ids, begin, std::min(begin + context, last));
      if (text->batches.empty() || text->batches.back().context != row.context ||
          text->batches.back().rows == kRowsOfBatch)
        text->batches.push_back(row);
      else
        append(text->batches.back(), row);
    }
  } else {
    if (run_.empty()) throw std::invalid_argument("--text FILE is needed: the states are not those of one run");
    const data::Dataset& dataset = data();
    if (dataset.validation_names().empty())
      throw std::invalid_argument(fmt::format("--text FILE is needed: {} has no validation set", run_.string()));
    const std::string set = dataset.validation_names().front();
    const int64_t rows =
        std::min(std::max<int64_t>(1, settings_.tokens / context), dataset.validation_sequences(set, context));
    for (int64_t row = 0; row < rows; row += kRowsOfBatch)
      text->batches.push_back(dataset.validation_rows(set, row, std::min(kRowsOfBatch, rows - row), context));
  }
  std::string all;
  for (const data::Batch& batch : text->batches) {
    text->targets += batch.target_count();
    all += fmt::format("{}x{} {} {}\n", batch.rows, batch.context, fmt::join(batch.inputs, ","),
                       fmt::join(batch.targets, ","));
  }
  if (text->targets == 0) throw std::invalid_argument("the fixed text has no token to predict");
  text->key = digest_of(all);
  const std::lock_guard lock(shared_->mutex);
  if (!shared_->text) shared_->text = std::move(text);
  return *shared_->text;
}

States States::with_folders() const {
  States some;
  some.settings_ = settings_;
  some.run_ = run_;
  some.shared_ = shared_;
  for (const StateInfo& state : states_)
    if (!state.folder.empty()) some.states_.push_back(state);
  return some;
}

}  // namespace cairn::analysis
