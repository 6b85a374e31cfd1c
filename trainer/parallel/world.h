// The processes of a run: who they are, how they find one another, and which of them is missing when one is.
#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/parallel/launch.h"
#include "trainer/parallel/transport.h"

namespace cairn::parallel {

struct WorldOptions {
  std::string backend = "gloo";             // gloo: CPU tensors; nccl is refused unless the CUDA module is loaded
  std::chrono::milliseconds limit{60'000};  // a rank silent for so long is lost; also the limit for finding one another
  std::chrono::milliseconds patience{
      1'800'000};  // a rank that lives but does not come to an exchange for so long is an error
};

class World {
 public:
  // Joins the world that the launcher describes: every rank is there when this returns. Size 1: no store, no group, no
  // thread. Throws RankLost naming the ranks that did not come within the limit, std::invalid_argument for a backend
  // that is not there.
  static std::unique_ptr<World> join(const Launch& launch, const WorldOptions& options = {});
  static std::unique_ptr<World> join(const WorldOptions& options = {}) { return join(read_launch(), options); }
  ~World();

  const int rank, size, local_rank;
  bool is_first() const { return rank == 0; }

  // A transport of its own for a thread of its own (its connections are apart from the others'); collective: every rank
  // asks in the same order.
  // `device`: where the tensors of its messages lie; a GPU's go through NCCL, those of the CPU through the world's
  // backend.
  std::unique_ptr<Transport> transport(const std::string& name, at::Device device = at::kCPU);

  // ---- small exchanges; main thread; every rank calls them in the same order; identity at size 1 ----
  void barrier();
  // values of this rank -> values of every rank, [size][values.size()], rank by rank. Every rank gives equally many.
  std::vector<double> gather(const std::vector<double>& values);
  std::vector<std::string> gather(const std::string& text);
  std::string broadcast(const std::string& text, int from = 0);
  int64_t broadcast(int64_t value, int from = 0);
  bool any(bool value);  // true where it is on any rank: "was a signal caught", "is a gradient not finite"
  int64_t largest(int64_t value);
  // All ranks hold the same text (a digest of the configuration, say), or std::runtime_error on every rank that names
  // `what`, the ranks that differ from rank 0 and both values.
  void agree(const std::string& what, const std::string& value);
  // Global lane sums: `lanes` holds [local lanes][columns] of this rank, lane by lane; each column is summed over all
  // lanes of all ranks by the binary tree that joins the gradients. The same bits for any number of ranks. Local lanes:
  // a power of two, the same on every rank.
  std::vector<double> sum_lanes(const std::vector<double>& lanes, int64_t columns);

  // Throws RankLost where a rank is known to be gone. From any thread, without waiting.
  void check() const;

  // Ends this rank's part. `error` empty: waits until all ranks have finished (the host of the store goes last).
  // Otherwise tells the others why it stopped and returns at once. The destructor calls leave("stopped without a word")
  // where nobody did.
  void leave(const std::string& error = "");

  struct Impl;

 private:
  World(const Launch& launch, const WorldOptions& options);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cairn::parallel
