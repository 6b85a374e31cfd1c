#include "trainer/device.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fmt/format.h>

#include "models/kernels/cuda/table.h"
#include "trainer/parallel/group.h"

namespace cairn {

bool open_cuda_module(std::string* why_not) {
  if (!kernels::cuda::open_module(why_not)) return false;
  // A module that was built without NCCL's headers has no such function: "nccl" stays refused, by name.
  if (void* maker = kernels::cuda::module_symbol("cairn_make_nccl_group"); maker != nullptr)
    parallel::register_group("nccl", reinterpret_cast<parallel::GroupMaker>(maker));
  return true;
}

at::Device choose_device(const std::string& wanted, int local_rank) {
  if (wanted == "cpu") return at::kCPU;
  if (wanted != "cuda" && wanted != "auto")
    throw std::invalid_argument(fmt::format("unknown device '{}' (there are auto, cpu, cuda)", wanted));
  std::string why_not;
  if (!open_cuda_module(&why_not)) {
    if (wanted == "auto") return at::kCPU;
    throw std::invalid_argument(fmt::format("cuda: {}; or choose cpu or auto", why_not));
  }
  const auto* gpus = c10::impl::getDeviceGuardImpl(at::kCUDA);
  const int count = gpus->deviceCount();
  if (local_rank < 0 || local_rank >= count)
    throw std::invalid_argument(fmt::format(
        "cuda: found {} GPUs on this machine, expected one for each of its ranks, and this is local rank {}; "
        "start fewer ranks or see CUDA_VISIBLE_DEVICES",
        count, local_rank));
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(local_rank));
  gpus->setDevice(device);
  return device;
}

std::string device_name(at::Device device) {
  if (!device.is_cuda()) return device.str();
  const kernels::cuda::Table* table = kernels::cuda::table();
  const auto cuda = table == nullptr ? 0 : table->cuda;
  return fmt::format("{}, CUDA {}.{}", device.str(), cuda / 1000, cuda % 1000 / 10);
}

}  // namespace cairn
