// NCCL groups for trainer/parallel/group.h. Compiled into libcairn_cuda.so, not into the program; trainer/device.cpp
// finds the function by its name and registers it. Never run on a GPU so far.
#ifndef USE_C10D_NCCL
#define USE_C10D_NCCL
#endif
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "trainer/parallel/group.h"

// Tensors of its messages lie on the GPU of this rank. Messages that are posted together go between startCoalescing()
// and endCoalescing(): NCCL runs what two ranks exchange in the order of the calls, so two ranks that both receive
// first would wait for one another for ever. place.store is this group's alone (NCCL puts its identifiers there);
// place.address is not used: NCCL_SOCKET_IFNAME names the interface where there is a choice.
extern "C" __attribute__((visibility("default"))) c10::intrusive_ptr<c10d::Backend> cairn_make_nccl_group(
    const cairn::parallel::GroupPlace& place) {
  // wait() returns when the data are there and throws after the time limit, as Gloo's does; without this it only makes
  // the current stream wait. Read when the group is made.
  setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = place.patience;
  // Connected now, while all ranks are here: in its first exchange a rank may have nothing to send.
  const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(place.local_rank));
  c10::cuda::set_device(device.index());  // of this thread, which may be one of its own
  auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(place.store, place.rank, place.size, options);
  group->eagerConnectSingleDevice(device);
  return group;
}
