// Moving bytes between ranks. What is computed with them is decided elsewhere, in a fixed order (gradients.h), so a
// transport never adds.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cairn::parallel {

// Ranks are gone (killed, crashed, cut off) or stopped with an error. The message names them.
class RankLost : public std::runtime_error {
 public:
  RankLost(std::vector<int> ranks, const std::string& message) : std::runtime_error(message), ranks(std::move(ranks)) {}
  std::vector<int> ranks;
};

// One tensor to or from one rank. Contiguous, CPU; zero elements are skipped (on both sides: sizes are known to both).
struct Message {
  at::Tensor tensor;
  int rank;
};

// Messages under way. Their memory stays untouched (sends) or unread (receives) until wait() returns.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;   // throws RankLost, or std::runtime_error where nobody is missing
  virtual void abort() = 0;  // from another thread: wait() throws
};

// Point-to-point messages; every rank posts in the same order: the n-th post of one meets the n-th of the others. One
// thread at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::unique_ptr<Pending> post(const std::vector<Message>& sends, const std::vector<Message>& receives) = 0;
};

}  // namespace cairn::parallel
