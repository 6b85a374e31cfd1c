// Data-parallel gradients: subtree sums of the ranks joined by the same binary tree that joins lanes, in buckets, while
// the backward pass goes on. Transport: each rank gets its chunk of a bucket from all ranks, adds in tree order, and
// hands the sum to all (or, with ZeRO-1, keeps it).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/parallel/buckets.h"
#include "trainer/parallel/world.h"

namespace cairn::parallel {

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
  // After finish(), collective: the norm of the whole gradient, the same bits on every rank, for any number of ranks,
  // any cuts and with or without ZeRO-1. (With ZeRO-1 it may fill up to a piece of the gradient after an own chunk.)
  double norm() { return norms({{0, INT64_MAX}}).front(); }
  // Likewise of parts of it, (begin, end) with begin on a multiple of optim::kPiece and zeros from end to the next one.
  std::vector<double> norms(const std::vector<std::pair<int64_t, int64_t>>& parts);
  // ZeRO-1, after the update: every rank's own parts of `flat` (same flat index, any type) to all ranks. Nothing where
  // every rank owns everything.
  void gather_owned(const at::Tensor& flat);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cairn::parallel
