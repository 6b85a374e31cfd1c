// Moving bytes between ranks. What is computed with them is decided elsewhere, in a fixed order (gradients.h), so a
// transport never adds.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <vector>

namespace cairn::parallel {

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

// Point-to-point messages, in order between two ranks. One thread at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::unique_ptr<Pending> post(const std::vector<Message>& sends, const std::vector<Message>& receives) = 0;
};

}  // namespace cairn::parallel
