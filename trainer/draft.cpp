#include "trainer/draft.h"

namespace cairn {

MtpDrafter::MtpDrafter(const models::Decoder& model, int64_t capacity) : model_(model) {
  if (model.mtp_modules() == 0) {
    throw std::invalid_argument(
        "draft: found mtp, but the model has no modules that predict further tokens (num_nextn_predict_layers)");
  }
  for (int64_t m = 0; m < std::min(model.mtp_modules(), kMost); ++m) {
    hidden_.push_back(at::empty({capacity, model.config().hidden_size}, model.parameters().flat().options()));
    caches_.push_back(model.make_mtp_cache(m, capacity));
  }
}

void MtpDrafter::saw(const at::Tensor& hidden) {
  hidden_[0].narrow(0, seen_, hidden.size(0)).copy_(hidden);
  seen_ += hidden.size(0);
}

std::vector<int32_t> MtpDrafter::propose(const std::vector<int32_t>& known, int64_t count, const Draw& draw) {
  const auto size = static_cast<int64_t>(known.size());
  std::vector<int32_t> drafts, ids = known;  // ids: known ones, then drafts
  for (int64_t m = 0; m < std::min<int64_t>(count, caches_.size()); ++m) {
    // Positions from the first that was read with a draft, or not at all, to the last whose hidden state is known.
    models::SequenceCache& cache = caches_[m];
    const int64_t first = cache.length, rows = seen_ - first;
    at::Tensor next = at::empty({rows}, at::kInt), positions = at::empty({rows}, at::kInt);
    for (int64_t r = 0; r < rows; ++r) {
      next.data_ptr<int32_t>()[r] = ids.at(first + r + m + 1);
      positions.data_ptr<int32_t>()[r] = static_cast<int32_t>(first + r);
    }
    models::Pass pass{.batch = 1, .length = rows, .positions = positions};
    pass.cache = &cache;
    const at::Tensor hidden = model_.mtp_hidden(m, hidden_[m].narrow(0, first, rows), next, pass);
    cache.length = std::max<int64_t>(size - m - 1, 0);
    if (m + 1 < static_cast<int64_t>(hidden_.size())) hidden_[m + 1].narrow(0, first, rows).copy_(hidden);
    const at::Tensor logits =
        model_.logits(hidden.narrow(0, rows - 1, 1), pass).to(at::kFloat).cpu().contiguous();  // [1, V]
    drafts.push_back(draw(logits.const_data_ptr<float>(), size + m));
    ids.push_back(drafts.back());
  }
  return drafts;
}

StatesBefore::StatesBefore(const models::SequenceCache& cache) : length_(cache.length) {
  for (const models::LayerCache& layer : cache.layers) {
    for (const at::Tensor& state : layer.states) states_.push_back(state.clone());
  }
}

void StatesBefore::restore(models::SequenceCache& cache) const {
  cache.length = length_;
  auto state = states_.begin();
  for (const models::LayerCache& layer : cache.layers) {
    for (const at::Tensor& live : layer.states) live.copy_(*state++);
  }
}

}  // namespace cairn
