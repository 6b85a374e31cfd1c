#include "trainer/parallel/buckets.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "optim/norm.h"

namespace cairn::parallel {
namespace {

using optim::kPiece;

// The allowed cut that is nearest to `wanted`, in [low, high] (both allowed).
int64_t nearest_cut(int64_t wanted, int64_t low, int64_t high, const std::vector<int64_t>& cuts) {
  if (cuts.empty()) return std::clamp((wanted + kPiece / 2) / kPiece * kPiece, low, high);
  const auto above = std::lower_bound(cuts.begin(), cuts.end(), wanted);
  int64_t best = low;
  const auto consider = [&](int64_t cut) {
    if (cut >= low && cut <= high && std::abs(cut - wanted) < std::abs(best - wanted)) best = cut;
  };
  if (above != cuts.end()) consider(*above);
  if (above != cuts.begin()) consider(*std::prev(above));
  consider(high);
  return best;
}

}  // namespace

std::vector<Bucket> plan_buckets(int64_t total, int ranks, int64_t target, const std::vector<int64_t>& cuts) {
  if (target < 1 || ranks < 1)
    throw std::invalid_argument(fmt::format("plan_buckets: target {} and {} ranks must be positive", target, ranks));
  for (size_t i = 0; i < cuts.size(); ++i)
    if (cuts[i] % kPiece != 0 || (i > 0 && cuts[i] <= cuts[i - 1]))
      throw std::invalid_argument(
          fmt::format("plan_buckets: cut {} is not ascending in multiples of {}", cuts[i], kPiece));
  std::vector<Bucket> buckets;
  for (int64_t end = total; end > 0;) {
    int64_t begin = end <= target ? 0 : nearest_cut(end - target, 0, end, cuts);
    if (begin == end) {  // what lies before the next cut is longer than the target
      begin = 0;
      if (cuts.empty())
        begin = std::max<int64_t>(0, (end - 1) / kPiece * kPiece);
      else if (const auto at = std::lower_bound(cuts.begin(), cuts.end(), end); at != cuts.begin())
        begin = *std::prev(at);
    }
    Bucket bucket{begin, end - begin, {begin}};
    for (int r = 1; r < ranks; ++r)
      bucket.splits.push_back(nearest_cut(begin + bucket.length * r / ranks, bucket.splits.back(), end, cuts));
    bucket.splits.push_back(end);
    buckets.push_back(std::move(bucket));
    end = begin;
  }
  return buckets;
}

void check_buckets(const std::vector<Bucket>& buckets, int64_t total, int ranks) {
  std::vector<const Bucket*> sorted;
  for (const Bucket& bucket : buckets) sorted.push_back(&bucket);
  std::sort(sorted.begin(), sorted.end(), [](const Bucket* a, const Bucket* b) { return a->offset < b->offset; });
  int64_t covered = 0;
  for (const Bucket* bucket : sorted) {
    const auto& splits = bucket->splits;
    const int64_t end = bucket->offset + bucket->length;
    if (bucket->offset != covered || bucket->length < 1)
      throw std::invalid_argument(
          fmt::format("gradient buckets: one begins at {} with {} elements; expected to begin at {}", bucket->offset,
                      bucket->length, covered));
    if (splits.size() != static_cast<size_t>(ranks) + 1 || splits.front() != bucket->offset || splits.back() != end ||
        !std::is_sorted(splits.begin(), splits.end()))
      throw std::invalid_argument(fmt::format(
          "gradient buckets: the bucket at {} is not split into {} ascending chunks", bucket->offset, ranks));
    for (int64_t split : splits)
      if (split % kPiece != 0 && split != total)
        throw std::invalid_argument(
            fmt::format("gradient buckets: {} is neither a multiple of {} nor the end ({})", split, kPiece, total));
    covered = end;
  }
  if (covered != total)
    throw std::invalid_argument(fmt::format("gradient buckets: they cover {} of {} elements", covered, total));
}

}  // namespace cairn::parallel
