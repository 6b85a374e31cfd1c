// Messages over a c10d group, watched: a wait that fails or is ended names the rank that is missing.
#pragma once

#include <cstdint>

#include "trainer/parallel/group.h"
#include "trainer/parallel/transport.h"
#include "trainer/parallel/watch.h"

namespace cairn::parallel {

// Every rank posts in the same order: the n-th post of one meets the n-th of the others.
class GroupTransport : public Transport {
 public:
  // watch outlives the transport.
  GroupTransport(c10::intrusive_ptr<c10d::Backend> group, Watch& watch);
  std::unique_ptr<Pending> post(const std::vector<Message>& sends, const std::vector<Message>& receives) override;

 private:
  c10::intrusive_ptr<c10d::Backend> group_;
  Watch& watch_;
  uint64_t posted_ = 0;
};

}  // namespace cairn::parallel
