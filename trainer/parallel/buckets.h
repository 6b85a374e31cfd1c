// How a flat gradient is cut: into buckets, in the order in which a backward pass finishes them, and each bucket into a
// chunk for every rank.
#pragma once

#include <cstdint>
#include <vector>

namespace cairn::parallel {

// A contiguous part of the flat gradient. Rank r reduces (and with ZeRO-1 owns) [splits[r], splits[r + 1]): ranks + 1
// ascending offsets inside the flat gradient. Every offset is a multiple of optim::kPiece or the end of the buffer, so
// that norms do not depend on the sharding.
struct Bucket {
  int64_t offset = 0, length = 0;
  std::vector<int64_t> splits;
};

// Buckets of about `target` elements from the end of the buffer to its begin. `cuts`: ascending offsets where buckets
// and chunks may be cut (multiples of kPiece); empty: every multiple. Muon with ZeRO-1 needs whole matrices on a rank:
// lay parameters out on multiples of kPiece and give their offsets. Chunks of a bucket are as equal as the cuts allow;
// some may be empty.
std::vector<Bucket> plan_buckets(int64_t total, int ranks, int64_t target = 1 << 20,
                                 const std::vector<int64_t>& cuts = {});

// Throws std::invalid_argument unless the buckets cover [0, total) once, with splits for `ranks` on piece boundaries.
void check_buckets(const std::vector<Bucket>& buckets, int64_t total, int ranks);

}  // namespace cairn::parallel
