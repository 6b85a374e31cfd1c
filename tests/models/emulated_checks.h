// What tests of CUDA kernels on the emulator share. Include cuda_emulator.h and the .cu files first.
#pragma once

#include "tests/models/cuda_emulator.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels::testing {

// `run` gives the same bits whichever thread goes first.
inline Tensors in_both_orders(const std::function<Tensors()>& run, const std::string& name) {
  emulator::order() = emulator::Order::backward;
  const Tensors other = run();
  emulator::order() = emulator::Order::forward;
  const Tensors all = run();
  for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(same_bits(all[i], other[i])) << name << ", output " << i;
  return all;
}

}  // namespace cairn::kernels::testing
