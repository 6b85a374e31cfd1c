#include "models/kernels/cpu/simd_paged_attention.h"

#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_paged_attention.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_online_softmax_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// As RowBlock, with up to kMost vectors of a row at a time: few rows need many columns to hide the latency of a
// multiply-add. No bit depends on it.
template <size_t MR, int64_t kMost, Into kInto, Order kOrder>
HWY_INLINE void WideRows(const Product& p, int64_t row, int64_t columns, int64_t terms) {
  int64_t column = 0;
  for (int64_t left = columns / int64_t{kWidth}; left > 0;) {
    const int64_t panels = (left + kMost - 1) / kMost, take = (left + panels - 1) / panels;
    switch (take) {
      case 1:
        Block<MR, 1, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 2:
        Block<MR, 2, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 3:
        Block < MR, kMost<3 ? 1 : 3, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 4:
        Block < MR, kMost<4 ? 1 : 4, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 5:
        Block < MR, kMost<5 ? 1 : 5, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 6:
        Block < MR, kMost<6 ? 1 : 6, kInto, kOrder>(p, row, column, 0, terms);
        break;
      case 7:
        Block < MR, kMost<7 ? 1 : 7, kInto, kOrder>(p, row, column, 0, terms);
        break;
      default:
        Block < MR, kMost<8 ? 1 : 8, kInto, kOrder>(p, row, column, 0, terms);
        break;
    }
    column += take * int64_t{kWidth};
    left -= take;
  }
}

// C [m, columns] from `terms` terms; m is the number of query heads that share a kv head.
template <Into kInto, Order kOrder>
HWY_INLINE void MultiplyFew(const Product& p, int64_t m, int64_t columns, int64_t terms) {
  constexpr bool kMany = kParts == 1;  // 32 registers
  int64_t row = 0;
  for (; row + 6 <= m; row += 6) WideRows<6, kMany ? 4 : 2, kInto, kOrder>(p, row, columns, terms);
  if (row + 4 <= m) WideRows<4, kMany ? 4 : 2, kInto, kOrder>(p, row, columns, terms), row += 4;
  if (row + 3 <= m) WideRows<3, kMany ? 4 : 3, kInto, kOrder>(p, row, columns, terms), row += 3;
  if (row + 2 <= m) WideRows<2, 4, kInto, kOrder>(p, row, columns, terms), row += 2;
  if (row < m) WideRows<1, 8, kInto, kOrder>(p, row, columns, terms);
}

void PagedHeadOf(const AttentionCall& call, const PagedHead& head) {
  static thread_local std::vector<float> scratch;
  const int64_t dim = call.dim, padded = call.padded, rows = head.rows, S = head.page_size;
  scratch.resize(16 + (kTile + 2 * padded) * rows);
  float* scores = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) / sizeof(float) % 16;
  float *part = scores + kTile * rows, *sums = part + padded * rows;
  alignas(64) float maximum[kTile] = {}, sum[kTile] = {};
  std::fill_n(sums, rows * padded, 0.0f);
  Running running;
  running.Clear();
  if (head.sink != nullptr)
    for (int64_t r = 0; r < rows; ++r) running.Begin(r, head.sink[r]);

  const int64_t width = std::min(S, kTile);  // of a tile of keys as it is stored
  for (int64_t key0 = head.first / kTile * kTile; key0 < head.length; key0 += kTile) {
    const int64_t keys = std::min(kTile, head.length - key0);
    for (int64_t k = 0; k < keys; k += width) {
      const int64_t page = head.table[(key0 + k) / S], tile = (key0 + k) % S / width;
      const float* b = head.keys + page * head.key_page + tile * dim * width;
      MultiplyFew<Into::set, Order::columns>({head.q, b, width, scores + k, kTile}, rows, width, dim);
    }
    const bool whole = keys == kTile && head.first <= key0;
    // Columns that no product has written are not seen.
    Maximum(
        call, rows, whole, [&](int64_t) CAIRN_LAMBDA { return head.first - key0; },
        [&](int64_t) CAIRN_LAMBDA { return keys - 1; }, scores, maximum);
    Exponentials(rows, maximum, scores, sum);
    running.Join(rows, maximum, sum);
    for (int64_t k = 0; k < keys; k += width) {
      const int64_t page = head.table[(key0 + k) / S], terms = std::min(width, keys - k);
      const float* b = head.values + page * head.value_page + (key0 + k) % S * padded;
      const Product product{scores + k, b, padded, part, padded};
      if (k == 0) {
        MultiplyFew<Into::set, Order::rows>(product, rows, padded, terms);
      } else {
        MultiplyFew<Into::add, Order::rows>(product, rows, padded, terms);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const F16 a = Set(running.alpha[r]), b = Set(running.beta[r]);
      for (int64_t c = r * padded; c < (r + 1) * padded; c += kLanes)
        Store(MulAdd(Load(part + c), b, Load(sums + c) * a), sums + c);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const F16 divisor = Set(running.sum[r]);
    ForColumns(dim, [&](size_t c, auto lanes)
                        CAIRN_LAMBDA { Store(Load(sums + r * padded + c) / divisor, head.out + r * dim + c, lanes); });
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(PagedHeadOf);

void paged_attention_head(const AttentionCall& call, const PagedHead& head) {
  HWY_DYNAMIC_DISPATCH(PagedHeadOf)(call, head);
}

}  // namespace cairn::kernels
#endif
