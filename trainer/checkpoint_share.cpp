#include "trainer/checkpoint_share.h"

#include <numeric>

#include "checkpoints/shared_folder.h"

namespace cairn {
namespace {

using checkpoints::TensorPiece;

// [first, last) of the weights and where that file stands among all files of weights.
struct ModelFile {
  size_t first, last;
  int rank;
};

uint64_t total(const std::vector<uint64_t>& bytes) { return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0}); }

std::string file_name(const std::string& stem, size_t k, size_t count) {
  return count == 1 ? stem + ".safetensors" : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, k + 1, count);
}

}  // namespace

CheckpointShare checkpoint_share(State& state, uint64_t shard_bytes) {
  parallel::World& world = state.world();
  const auto ranks = static_cast<size_t>(world.size), me = static_cast<size_t>(world.rank);
  CheckpointShare share{.model = disk_model(state.model())};
  const std::vector<StateTensor> extras = state.extras();

  // Bytes of what every rank holds, in one order on all of them, and of what each holds alone.
  std::vector<uint64_t> weights, common;
  std::vector<const StateTensor*> shared, own;
  for (const auto& view : share.model.views) weights.push_back(view.bytes());
  uint64_t alone = 0;
  for (const StateTensor& t : extras) {
    (t.everywhere ? shared : own).push_back(&t);
    (t.everywhere ? common.emplace_back(0) : alone) += t.tensor.nbytes();
  }
  std::vector<uint64_t> loads;
  for (double bytes : world.gather(std::vector<double>{static_cast<double>(alone)}))
    loads.push_back(static_cast<uint64_t>(bytes));
  std::vector<bool> has_own;
  for (uint64_t load : loads) has_own.push_back(load > 0);

  const uint64_t fair = (total(weights) + total(common) + total(loads)) / ranks;
  std::vector<size_t> model_cuts(ranks + 1, weights.size()), common_cuts;
  model_cuts[0] = 0;
  if (loads[0] + total(weights) <= fair) {  // the first rank's, all of them
    loads[0] += total(weights);
    common_cuts = checkpoints::share_out(common, loads);
  } else {
    std::vector<uint64_t> everything = weights;
    everything.insert(everything.end(), common.begin(), common.end());
    const std::vector<size_t> cuts = checkpoints::share_out(everything, loads);
    for (size_t r = 0; r <= ranks; ++r) {
      model_cuts[r] = std::min(cuts[r], weights.size());
      common_cuts.push_back(std::max(cuts[r], weights.size()) - weights.size());
    }
  }

  std::vector<ModelFile> model_files;
  for (size_t r = 0; r < ranks; ++r) {
    uint64_t filled = 0;
    for (size_t i = model_cuts[r]; i < model_cuts[r + 1]; ++i) {
      if (i == model_cuts[r] || filled + weights[i] > shard_bytes) {
        model_files.push_back({i, i, static_cast<int>(r)});
        filled = 0;
      }
      filled += weights[i];
      model_files.back().last = i + 1;
    }
  }
  for (size_t k = 0; k < model_files.size(); ++k) {
    const ModelFile& file = model_files[k];
    if (file.rank != world.rank) continue;
    share.files.push_back(
        {"model", file_name("model", k, model_files.size()), share.tensors.size(), file.last - file.first});
    for (size_t i = file.first; i < file.last; ++i)
      share.tensors.push_back({share.model.views[i], 0, share.model.views[i].shape});
  }

  size_t before = 0, writers = 0;  // of files of the optimizer
  for (size_t r = 0; r < ranks; ++r) {
    if (!has_own[r] && common_cuts[r] == common_cuts[r + 1]) continue;
    ++writers;
    before += r < me;
  }
  const size_t first = share.tensors.size();
  const auto add = [&](const StateTensor& t) {
    share.model.owners.push_back(t.tensor.cpu());  // itself, unless it lies on a GPU
    share.tensors.push_back({view_of(t.name, share.model.owners.back()), t.first_index, t.shape});
  };
  for (const StateTensor* t : own) add(*t);
  for (size_t i = common_cuts[me]; i < common_cuts[me + 1]; ++i) add(*shared[i]);
  if (share.tensors.size() > first) {
    const std::string stem = "training/optimizer";
    share.files.push_back({stem, file_name(stem, before, writers), first, share.tensors.size() - first});
  }
  return share;
}

}  // namespace cairn
