// The stream of a GPU on which a communication thread works beside the backward pass. What is enqueued there waits for
// the gradients, not for what comes after them.
//
// Never run on a GPU so far.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace cairn::parallel {

// Makes a stream of its own the current one of this thread until the end of the scope. Only for devices with streams.
class SideStream {
 public:
  explicit SideStream(at::Device device)
      : device_(device),
        backend_(device.type()),
        side_(backend_.getStreamFromGlobalPool(device, /*isHighPriority=*/true)),
        guard_(side_) {}

  // What is enqueued here from now on waits for what any thread has enqueued on the default stream, where models and
  // optimizers compute, so far.
  void after_compute() {
    c10::Event event(device_.type());
    event.record(backend_.getDefaultStream(device_));
    event.block(side_);
  }
  // Waits, on the host, until everything enqueued here is done.
  void finish() { side_.synchronize(); }

 private:
  at::Device device_;
  c10::impl::VirtualGuardImpl backend_;
  c10::Stream side_;
  c10::StreamGuard guard_;
};

}  // namespace cairn::parallel
