#include "trainer/device.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>

#include "models/kernels/cuda/table.h"
#include "optim/kernels/device.h"
#include "trainer/parallel/group.h"

namespace cairn {
namespace {

void adamw(const optim::kernels::Run& run, const optim::kernels::AdamwScalars& s) {
  using kernels::cuda::Type;
  kernels::cuda::table()->adamw({.p = run.p,
                                 .g = run.g,
                                 .m = run.m,
                                 .v = run.v,
                                 .n = run.n,
                                 .decay = run.decay,
                                 .type = run.bf16 ? Type::bfloat16 : Type::float32},
                                {.grad_scale = s.grad_scale,
                                 .one_minus_beta1 = s.one_minus_beta1,
                                 .beta2 = s.beta2,
                                 .one_minus_beta2 = s.one_minus_beta2,
                                 .inv_sqrt_correction2 = s.inv_sqrt_correction2,
                                 .eps = s.eps,
                                 .step_size = s.step_size,
                                 .clear_grad = s.clear_grad});
}

void squared_norm_pieces(const at::Tensor& flat, int64_t piece, double* out) {
  kernels::cuda::table()->squared_norm_pieces(flat, piece, out);
}

// The same bits for the same work: DESIGN says "no float atomics, fixed cuBLAS workspace, ordered reductions".
void fix_arithmetic() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);  // else every at::empty is written once, on the CPU too
  context.setDeterministicCuDNN(true);
  context.setFloat32MatmulPrecision("highest");
  context.setAllowBF16ReductionCuBLAS(false);
}

}  // namespace

bool open_cuda_module(std::string* why_not) {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // read when cuBLAS starts
  if (!kernels::cuda::open_module(why_not)) return false;
  // A module that was built without NCCL's headers has no such function: "nccl" stays refused, by name.
  if (void* maker = kernels::cuda::module_symbol("cairn_make_nccl_group"); maker != nullptr)
    parallel::register_group("nccl", reinterpret_cast<parallel::GroupMaker>(maker));
  use_device_passes(true);
  fix_arithmetic();
  return true;
}

void use_device_passes(bool wanted) {
  if (wanted && kernels::cuda::table() != nullptr)
    optim::kernels::set_device_passes({.adamw = adamw, .squared_norm_pieces = squared_norm_pieces});
  else
    optim::kernels::set_device_passes({});
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
  const kernels::cuda::Table* table = kernels::cuda::table();
  if (!device.is_cuda() || table == nullptr) return std::string(device.str());
  return fmt::format("{}, CUDA {}.{}", table->gpu_name(device.index()), table->cuda / 1000, table->cuda % 1000 / 10);
}

std::string device_warning(at::Device device) {
  if (!device.is_cuda()) return "";
  return fmt::format(
      "{}: Cairn has never run on a GPU so far: its GPU code compiles and its operators are tested on CPUs, no more. "
      "`build/bin/test_models --gtest_filter='Cuda*'` and `build/bin/test_trainer --gtest_filter='Cuda*'` say what "
      "works here; train.kernels: aten leaves the hand-written kernels out; device cpu leaves the GPU out",
      device_name(device));
}

void wait_for(at::Device device) {
  if (!device.is_cpu()) c10::impl::getDeviceGuardImpl(device.type())->synchronizeDevice(device.index());
}

double device_peak_gflops(at::Device device, at::ScalarType type, double seconds) {
  const at::NoGradGuard no_grad;
  using Clock = std::chrono::steady_clock;
  constexpr int64_t n = 4096, kAtOnce = 4;
  const at::Tensor a = at::ones({n, n}, at::TensorOptions(type).device(device)), b = at::ones_like(a);
  at::Tensor c = at::mm(a, b);
  wait_for(device);
  double best = 1e9;
  for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds;) {
    const auto begin = Clock::now();
    for (int64_t i = 0; i < kAtOnce; ++i) at::mm_out(c, a, b);
    wait_for(device);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / kAtOnce);
  }
  return 2.0 * n * n * n / best / 1e9;
}

}  // namespace cairn
