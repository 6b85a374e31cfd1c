// labels: quick
// What can be said of the CUDA module without a GPU: it links against LibTorch's CUDA library, and a machine that
// cannot use it is told why.
#include <dlfcn.h>

#include <filesystem>

#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

TEST(CudaModule, OpensOrSaysWhyNot) {
  std::string why_not = "untouched";
  if (cuda::open_module(&why_not)) {
    EXPECT_EQ(why_not, "");
    EXPECT_NE(cuda::table(), nullptr);
    EXPECT_TRUE(cuda::available(at::ones({1}, at::kCUDA)));
    return;
  }
  EXPECT_EQ(cuda::table(), nullptr);
  EXPECT_EQ(cuda::module_symbol("cairn_cuda_table"), nullptr);
  EXPECT_FALSE(cuda::available(at::ones({1})));
  EXPECT_GT(why_not.size(), 20u);
  EXPECT_NE(why_not.find_first_of(";:("), std::string::npos) << "says nothing of what to do: " << why_not;
  std::string again;
  EXPECT_FALSE(cuda::open_module(&again));
  EXPECT_EQ(again, why_not);
}

TEST(CudaModule, LinksWithoutAGpu) {
  const auto path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libcairn_cuda.so";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " was not built: no nvcc";
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) GTEST_SKIP() << dlerror();
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(module, nullptr) << dlerror();
  const auto make = reinterpret_cast<const cuda::Table* (*)()>(dlsym(module, "cairn_cuda_table"));
  ASSERT_NE(make, nullptr);
  const cuda::Table* table = make();
  EXPECT_EQ(table->size, static_cast<int64_t>(sizeof(cuda::Table)));
  EXPECT_GE(table->cuda, 12000);
  EXPECT_NE(table->gpu_name, nullptr);  // the last: none is missing before it
  // Entries of other files of the module.
  for (const void* entry :
       {reinterpret_cast<const void*>(table->route), reinterpret_cast<const void*>(table->experts_backward),
        reinterpret_cast<const void*>(table->delta_rule_backward),
        reinterpret_cast<const void*>(table->sigmoid_gate_backward)})
    EXPECT_NE(entry, nullptr);
  // Checks come before anything touches a GPU.
  EXPECT_NE(testing::message_of([&] {
              table->gated_forward(at::ones({2, 4}), Activation::silu);
            }).find("[gated_forward] gate_up: expected float32 or bfloat16 on a GPU"),
            std::string::npos);
  EXPECT_NE(testing::message_of([&] {
              table->sort_by_expert(at::ones({2, 4}, at::kInt), 2, 0, 1);
            }).find("[sort_by_expert] experts: expected int32 [N, k] on a GPU"),
            std::string::npos);
  EXPECT_NE(testing::message_of([&] {
              table->causal_conv_forward(at::ones({2, 4}), at::ones({4, 2}), {});
            }).find("[causal_conv_forward] x: expected float32 or bfloat16 on a GPU"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
