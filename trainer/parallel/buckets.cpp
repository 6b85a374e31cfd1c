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

// What each rank takes of `length` elements so that the sums of all come as near to one another as they can.
std::vector<int64_t> level(const std::vector<int64_t>& loads, int64_t length) {
  std::vector<int64_t> sorted = loads;
  std::sort(sorted.begin(), sorted.end());
  int64_t height = 0, below = 0;
  for (size_t k = 0; k < sorted.size(); ++k) {  // the k + 1 smallest loads are brought to one height
    below += sorted[k];
    height = (below + length) / static_cast<int64_t>(k + 1);
    if (k + 1 < sorted.size() && height <= sorted[k + 1]) break;
  }
  std::vector<int64_t> shares;
  for (int64_t load : loads) shares.push_back(std::max<int64_t>(0, height - load));
  return shares;
}

}  // namespace

std::vector<Bucket> plan_buckets(int64_t total, int ranks, int64_t target, const std::vector<int64_t>& cuts) {
  if (target < 1 || ranks < 1)
    throw std::invalid_argument(fmt::format("plan_buckets: target {} and {} ranks must be positive", target, ranks));
  for (size_t i = 0; i < cuts.size(); ++i)
    if (cuts[i] < 0 || cuts[i] > total || (i > 0 && cuts[i] <= cuts[i - 1]))
      throw std::invalid_argument(
          fmt::format("plan_buckets: cut {} is not ascending between 0 and {}", cuts[i], total));
  std::vector<Bucket> buckets;
  std::vector<int64_t> loads(ranks, 0);
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
    const std::vector<int64_t> shares = level(loads, bucket.length);
    int64_t wanted = begin;
    for (int r = 1; r < ranks; ++r) {
      wanted += shares[r - 1];
      bucket.splits.push_back(nearest_cut(wanted, bucket.splits.back(), end, cuts));
    }
    bucket.splits.push_back(end);
    for (int r = 0; r < ranks; ++r) loads[r] += bucket.splits[r + 1] - bucket.splits[r];
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
    covered = end;
  }
  if (covered != total)
    throw std::invalid_argument(fmt::format("gradient buckets: they cover {} of {} elements", covered, total));
}

}  // namespace cairn::parallel
