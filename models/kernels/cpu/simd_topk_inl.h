// The k best of a stream of scores in ascending positions, the lower position first among equals; once for every
// target.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_TOPK_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_TOPK_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_TOPK_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_TOPK_INL_H
#endif

#include <algorithm>
#include <bit>

#include "models/kernels/cpu/lanes16.h"
#include "models/kernels/cpu/simd_attention.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// Scores above a threshold are kept beside their positions; when the room is full, the threshold rises to one that
// leaves k or a few more. What is dropped has k better ones before it, so the choice at the end is exact.
class TopK {
 public:
  static constexpr float kLowest = std::numeric_limits<float>::lowest();
  static int64_t Capacity(int64_t k) { return 2 * k + 2 * kKeyTile; }
  static int64_t Room(int64_t k) { return Capacity(k) + kLanes; }  // floats, and as many int32

  HWY_INLINE void Reset(int64_t k, float* values, int32_t* positions) {
    k_ = k, values_ = values, positions_ = positions;
    count_ = 0, threshold_ = -std::numeric_limits<float>::infinity();
  }

  // 64 scores of positions first, first + 1, ...: -inf is no candidate; none is NaN, no zero is negative.
  HWY_INLINE void Push(const float* scores, int32_t first) {
    const Tag d;
    const IntTag di;
    const auto threshold = hn::Set(d, threshold_);
    for (size_t i = 0; i < static_cast<size_t>(kKeyTile); i += kWidth) {
      const auto s = hn::LoadU(d, scores + i);
      const auto better = hn::Gt(s, threshold);
      if (hn::AllFalse(d, better)) continue;
      hn::CompressStore(hn::Iota(di, first + static_cast<int32_t>(i)), hn::RebindMask(di, better), di,
                        positions_ + count_);
      count_ += hn::CompressStore(s, better, d, values_ + count_);
    }
    if (count_ + kKeyTile > Capacity(k_)) Shrink(k_ / 4);
  }

  // At most k, exactly the best.
  void Finish() { Shrink(0); }
  int64_t count() const { return count_; }
  const int32_t* positions() const { return positions_; }
  const float* values() const { return values_; }

 private:
  // Floats in the order of integers; its own inverse.
  static int64_t Ordered(float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
  }
  static float Float(int64_t ordered) {
    const auto bits = static_cast<int32_t>(ordered);
    return std::bit_cast<float>(bits ^ (bits >> 31 & 0x7fffffff));
  }

  int64_t CountFrom(float value) const {  // how many are at least `value`
    const Tag d;
    const auto v = hn::Set(d, value);
    size_t n = 0;
    for (int64_t i = 0; i < count_; i += kWidth) n += hn::CountTrue(d, hn::Ge(hn::LoadU(d, values_ + i), v));
    return static_cast<int64_t>(n);
  }

  // Leaves the k best, or up to `slack` more.
  void Shrink(int64_t slack) {
    if (count_ <= k_) return;
    const Tag d;
    hn::StoreU(hn::Set(d, -std::numeric_limits<float>::infinity()), d, values_ + count_);  // the last vector's rest
    float least = values_[0], most = values_[0];
    if (threshold_ < kLowest) {
      auto low = hn::Set(d, least);
      const auto nothing = hn::Set(d, kLowest);
      for (int64_t i = 0; i < count_; i += kWidth) {
        const auto v = hn::LoadU(d, values_ + i);
        low = hn::Min(low, hn::IfThenElse(hn::Lt(v, nothing), low, v));
      }
      least = hn::GetLane(hn::MinOfLanes(d, low));
    } else {
      least = threshold_;
    }
    auto high = hn::Set(d, most);
    for (int64_t i = 0; i < count_; i += kWidth) high = hn::Max(high, hn::LoadU(d, values_ + i));
    most = hn::GetLane(hn::MaxOfLanes(d, high));
    // At least k from `low` on, fewer from `past` on.
    int64_t low = Ordered(least), past = Ordered(most) + 1, found = count_;
    while (past - low > 1 && found > k_ + slack) {
      const int64_t middle = low + (past - low) / 2, n = CountFrom(Float(middle));
      if (n >= k_)
        low = middle, found = n;
      else
        past = middle;
    }
    const float value = Float(low);
    if (found <= k_ + slack)
      Keep(value);
    else
      KeepWithTies(value);
    threshold_ = value;
  }

  void Keep(float value) {
    const Tag d;
    const IntTag di;
    const auto v = hn::Set(d, value);
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; i += kWidth) {
      const auto s = hn::LoadU(d, values_ + i);
      const auto p = hn::LoadU(di, positions_ + i);
      const auto good = hn::Ge(s, v);
      hn::CompressStore(p, hn::RebindMask(di, good), di, positions_ + kept);
      kept += hn::CompressStore(s, good, d, values_ + kept);
    }
    count_ = kept;
  }

  // More than k are at least `value`, the k-th best: of those that equal it the first.
  void KeepWithTies(float value) {
    int64_t above = 0, kept = 0;
    for (int64_t i = 0; i < count_; ++i) above += values_[i] > value;
    for (int64_t i = 0, ties = k_ - above; i < count_; ++i) {
      if (values_[i] < value || (values_[i] == value && --ties < 0)) continue;
      values_[kept] = values_[i], positions_[kept] = positions_[i];
      ++kept;
    }
    count_ = kept;
  }

  int64_t k_ = 0, count_ = 0;
  float threshold_ = 0;
  float* values_ = nullptr;
  int32_t* positions_ = nullptr;
};

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
