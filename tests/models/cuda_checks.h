// Tests of the CUDA kernels: run where a GPU is found, skipped with the reason elsewhere.
#pragma once

#include "models/kernels/cuda/table.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels::testing {

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why_not;
    if (!cuda::open_module(&why_not)) GTEST_SKIP() << "no GPU: " << why_not;
    table = cuda::table();
    ASSERT_NE(table, nullptr);
  }
  const cuda::Table* table = nullptr;
};

inline at::Tensor on_gpu(const at::Tensor& x) { return x.defined() ? x.to(at::kCUDA) : x; }

// Rounding of what is written: float32 sums in another order than the CPU's, or one rounding to bfloat16.
inline double tolerance(at::ScalarType type) { return type == at::kFloat ? 2e-6 : 5e-3; }

}  // namespace cairn::kernels::testing
