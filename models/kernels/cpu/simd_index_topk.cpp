#include "models/kernels/cpu/simd_index_topk.h"

#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_index_topk.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_index_scores_inl.h"
#include "models/kernels/cpu/simd_topk_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

void Choose(const IndexCall& call, int64_t begin, int64_t end) {
  static thread_local std::vector<float> values;
  static thread_local std::vector<int32_t> positions;
  int64_t row[kIndexRows], rows = 0;  // those that have a choice
  for (int64_t r = begin; r < end; ++r) {
    const int64_t t = call.position + r, first = call.start[r];
    if (t - first >= call.topk) {
      row[rows++] = r;
      continue;
    }
    int32_t* to = call.chosen + r * call.width;
    for (int64_t i = 0; i < call.width; ++i) to[i] = static_cast<int32_t>(first + i <= t ? first + i : -1);
  }
  if (rows == 0) return;
  const int64_t room = TopK::Room(call.topk);
  values.resize(kIndexRows * room);
  positions.resize(kIndexRows * room);
  TopK best[kIndexRows];
  for (int64_t i = 0; i < rows; ++i) best[i].Reset(call.topk, values.data() + i * room, positions.data() + i * room);

  alignas(64) float scores[kKeyTile];
  for (int64_t key0 = call.start[row[0]] / kKeyTile * kKeyTile; key0 <= call.position + row[rows - 1];
       key0 += kKeyTile) {
    const float* keys = call.keys + key0 * call.dim;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = row[i], t = call.position + r, first = call.start[r];
      if (t < key0 || first >= key0 + kKeyTile) continue;
      ScoreTile(call.q + r * call.q_stride, call.w + r * call.w_stride, call.heads, call.dim, keys, scores);
      Rank({first, t, first + call.sinks, t - call.window + 1}, key0, scores);
      best[i].Push(scores, static_cast<int32_t>(key0));
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    best[i].Finish();
    int32_t* to = call.chosen + row[i] * call.width;
    std::copy_n(best[i].positions(), best[i].count(), to);
    std::fill(to + best[i].count(), to + call.width, -1);
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(Choose);

void index_choose(const IndexCall& call, int64_t begin, int64_t end) { HWY_DYNAMIC_DISPATCH(Choose)(call, begin, end); }

}  // namespace cairn::kernels
#endif
