#include "optim/kernels/device.h"

namespace cairn::optim::kernels {
namespace {

DevicePasses& passes() {
  static DevicePasses chosen;
  return chosen;
}

}  // namespace

void set_device_passes(const DevicePasses& chosen) { passes() = chosen; }
const DevicePasses& device_passes() { return passes(); }

}  // namespace cairn::optim::kernels
