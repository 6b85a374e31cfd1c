// How a flat gradient is cut: into buckets, in the order in which a backward pass finishes them, and each bucket into a
// chunk for every rank.
#pragma once

#include <cstdint>
#include <vector>

namespace cairn::parallel {

// A contiguous part of the flat gradient. Rank r reduces (and with ZeRO-1 owns) [splits[r], splits[r + 1]): ranks + 1
// ascending offsets inside the flat gradient.
struct Bucket {
  int64_t offset = 0, length = 0;
  std::vector<int64_t> splits;
};

// Buckets of about `target` elements from the end of the buffer to its begin. `cuts`: ascending offsets inside the
// buffer where buckets and chunks may be cut; empty: every multiple of optim::kPiece. Chunks are as large as makes the
// ranks' sums over all buckets equal, as far as the cuts allow; some may be empty.
std::vector<Bucket> plan_buckets(int64_t total, int ranks, int64_t target = 1 << 20,
                                 const std::vector<int64_t>& cuts = {});

// Throws std::invalid_argument unless the buckets cover [0, total) once, with ascending splits for `ranks`.
void check_buckets(const std::vector<Bucket>& buckets, int64_t total, int ranks);

}  // namespace cairn::parallel
