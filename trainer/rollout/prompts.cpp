// Prompts are computed by the kernels of training, several in one pass, and their keys and values go into the pages.
#include <algorithm>

#include "trainer/rollout/run.h"

namespace cairn::rollout {
namespace {

constexpr int64_t kTile = 64;  // documents start at tiles of keys: so their attention adds up as it does alone

// Where the prompts lie in one pass: each a row of the batch, or packed one after another, whichever is less.
struct Layout {
  int64_t batch = 1, length = 0;
  std::vector<int64_t> first;  // row of each prompt
  bool packed = false;

  explicit Layout(const std::vector<std::shared_ptr<Group>>& groups) {
    int64_t longest = 0, total = 0;
    for (const auto& group : groups) {
      longest = std::max(longest, group->length());
      total += (group->length() + kTile - 1) / kTile * kTile;
    }
    const int64_t count = static_cast<int64_t>(groups.size());
    packed = total < count * longest || count * longest < padded_rows(1);
    batch = packed ? 1 : count, length = packed ? total : longest;
    for (int64_t i = 0, row = 0; i < count; ++i) {
      first.push_back(row);
      row += packed ? (groups[i]->length() + kTile - 1) / kTile * kTile : longest;
    }
  }
};

}  // namespace

void Engine::compute_prompts(const std::vector<std::shared_ptr<Group>>& groups) {
  if (groups.empty()) return;
  const Layout layout(groups);
  const int64_t rows = layout.batch * layout.length, S = options_.page_size;
  const at::Tensor ids = at::zeros({rows}, at::kInt), positions = at::zeros({rows}, at::kInt),
                   segments = at::zeros({rows}, at::kInt), slots = at::full({rows}, -1, at::kLong),
                   last = at::empty({static_cast<int64_t>(groups.size())}, at::kLong);
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& group = *groups[i];
    const int64_t first = layout.first[i], end = i + 1 < groups.size() ? layout.first[i + 1] : rows;
    for (int64_t r = 0; first + r < end; ++r) {
      const bool filling = r >= group.length();
      // What fills up is a document of its own: it costs a few products and touches nothing.
      segments.data_ptr<int32_t>()[first + r] = static_cast<int32_t>(2 * i + filling);
      positions.data_ptr<int32_t>()[first + r] = static_cast<int32_t>(filling ? r - group.length() : r);
      if (filling) continue;
      ids.data_ptr<int32_t>()[first + r] = group.request->prompt[r];
      slots.data_ptr<int64_t>()[first + r] = group.pages[r / S] * S + r % S;
    }
    last.data_ptr<int64_t>()[i] = first + group.length() - 1;
    stats_.prompt_tokens += group.length();
  }
  models::Pass pass = pass_of(layout.batch, layout.length);
  pass.positions = positions;
  if (layout.packed) pass.segments = segments;
  cache_.starts = true, cache_.slots = slots;
  pass.paged = &cache_;
  const at::Tensor hidden = model_.hidden(ids, pass).index_select(0, last.to(model_.parameters().flat().device()));
  at::Tensor many = at::zeros({padded_rows(hidden.size(0)), hidden.size(1)}, hidden.options());
  many.narrow(0, 0, hidden.size(0)).copy_(hidden);
  const at::Tensor logits = model_.logits(many, pass).to(at::kFloat).cpu().contiguous();
  for (size_t i = 0; i < groups.size(); ++i) {
    groups[i]->hidden = hidden.narrow(0, i, 1);
    groups[i]->logits = logits.narrow(0, i, 1);
    groups[i]->computed = true;
  }
}

}  // namespace cairn::rollout
