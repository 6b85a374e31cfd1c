// Data-parallel gradients: subtree sums of the ranks joined by the same binary tree that joins lanes, in buckets, while
// the backward pass goes on. Transport: each rank gets its chunk of a bucket from all ranks, adds in tree order, and
// hands the sum to all (or, with ZeRO-1, keeps it).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/parallel/world.h"

namespace cairn::parallel {

// A contiguous part of the flat gradient. splits: size + 1 ascending offsets inside the flat gradient; rank r reduces
// (and with ZeRO-1 owns) [splits[r], splits[r + 1]). Offsets are multiples of optim::kPiece, or the end of the buffer.
struct Bucket {
  int64_t offset = 0, length = 0;
  std::vector<int64_t> splits;
};

// Buckets from the end of the buffer to its begin (the order in which a backward pass finishes), of about `target`
// elements each. `cuts`: ascending offsets where buckets and chunks may be cut (multiples of kPiece); empty: every
// multiple of kPiece. Muon with ZeRO-1 needs whole matrices on a rank: lay parameters out on multiples of kPiece and
// give their offsets.
std::vector<Bucket> plan_buckets(int64_t total, int ranks, int64_t target = 1 << 20,
                                 const std::vector<int64_t>& cuts = {});

class Reducer {
 public:
  struct Options {
    bool gather = true;  // false: ZeRO-1, only the own chunks of the gradient hold the sum
  };
  // gradient: contiguous float32 [total], the subtree sum of this rank's lanes once ready. Buckets cover it once, in
  // the order in which they are reduced (the same on every rank). world outlives the reducer. Size 1: no thread,
  // nothing is moved. Collective.
  Reducer(World& world, at::Tensor gradient, std::vector<Bucket> buckets, Options options);
  ~Reducer();

  void begin();                                // of a step
  void ready(int64_t offset, int64_t length);  // this part of the gradient is final; each element at most once a step
  void finish();  // the rest is ready too; waits. Throws what the exchange threw (RankLost)

  // Parts of the flat index that this rank owns: (offset, length), ascending. At size 1 or with `gather`: everything.
  std::vector<std::pair<int64_t, int64_t>> owned() const;
  // After finish(): the norm of the whole gradient, the same bits on every rank, for any number of ranks and with or
  // without ZeRO-1.
  double norm();
  // ZeRO-1, after the update: every rank's own parts of `flat` (same flat index, any type) to all ranks. Nothing where
  // every rank owns everything.
  void gather_owned(const at::Tensor& flat);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cairn::parallel
