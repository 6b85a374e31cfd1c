// labels: quick
// The CUDA kernels of norms, activations, rope and the optimizer's passes, run on the CPU (cuda_emulator.h), and what
// the emulator itself finds.
#include <cmath>

#include "models/kernels/ref/activation.h"
#include "models/kernels/ref/norm.h"
#include "models/kernels/rope.h"
#include "tests/models/kernel_checks.h"
// After them:
#include "tests/models/cuda_emulator.h"
//
#include "models/kernels/cuda/activation.cu"
#include "models/kernels/cuda/flat.cu"
#include "models/kernels/cuda/norm.cu"
#include "models/kernels/cuda/rope.cu"

namespace cairn::kernels {
namespace {

using namespace testing;
using emulator::Order;

__global__ void lanes_that_never_come() {
  if (threadIdx.x < 5)
    __syncthreads();
  else
    __shfl_xor_sync(0xFFFFFFFFu, 1, 1);
}
__global__ void neighbours(float* out, bool wait) {
  float* shared = cuda::dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (wait) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}
__global__ void lane_outside(int mask) { __shfl_sync(static_cast<uint32_t>(mask), 1, 0); }

std::string fault_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

TEST(CudaEmulator, FindsThreadsThatWaitForOneAnother) {
  const auto why = fault_of([] { cuda::launch(lanes_that_never_come, 2, 64, 0, nullptr); });
  EXPECT_NE(why.find("others for lanes that never come"), std::string::npos) << why;
  EXPECT_NE(fault_of([] { cuda::launch(lane_outside, 1, 32, 0, nullptr, 6); }).find("mask"), std::string::npos);
  EXPECT_NE(fault_of([] { cuda::launch(lane_outside, 1, 20, 0, nullptr, -1); }).find("mask"), std::string::npos);
  EXPECT_NE(fault_of([] { cuda::launch(lane_outside, 1, 2000, 0, nullptr, 1); }).find("block"), std::string::npos);
}

TEST(CudaEmulator, ShowsAMissingBarrier) {
  std::vector<float> out(64);
  for (bool wait : {true, false})
    for (Order order : {Order::forward, Order::backward}) {
      emulator::order() = order;
      cuda::launch(neighbours, 1, 64, 64 * sizeof(float), nullptr, out.data(), wait);
      int right = 0;
      for (int i = 0; i < 64; ++i) right += out[i] == static_cast<float>((i + 1) % 64);
      // Without the barrier a thread finds NaN where its neighbour has not been.
      EXPECT_EQ(right, wait ? 64 : order == Order::forward ? 1 : 63);
    }
  emulator::order() = Order::forward;
}

cuda::Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16;
}
double tolerance(at::ScalarType type) { return type == at::kFloat ? 2e-6 : 5e-3; }
cuda::Rows rows_of(const at::Tensor& x) { return {x.data_ptr(), 1, x.stride(0), 0}; }

// out, rstd, ds, dweight
Tensors norm_on(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& dy) {
  const int64_t N = x.size(0), D = x.size(1);
  Tensors out{at::empty_like(dy), at::empty({N}), at::empty_like(dy), at::ones({D})};
  const auto sum = residual.defined() ? at::empty_like(dy) : x;
  cuda::RmsNormForward job;
  job.type = type_of(x), job.weight_type = type_of(weight), job.rows = N, job.columns = D;
  job.x = rows_of(x), job.weight = weight.const_data_ptr(), job.eps = 1e-5f, job.offset = 1;
  if (residual.defined()) job.residual = residual.const_data_ptr(), job.sum = sum.data_ptr();
  job.y = out[0].data_ptr(), job.rstd = out[1].data_ptr<float>();
  cuda::rms_norm_forward(job, nullptr);
  const auto partial = at::full({cuda::weight_pieces(N), D}, NAN);
  cuda::RmsNormBackward back;
  back.type = job.type, back.weight_type = job.weight_type, back.rows = N, back.columns = D;
  back.dy = rows_of(dy), back.sum = rows_of(sum), back.weight = job.weight, back.rstd = job.rstd, back.offset = 1;
  back.out = rows_of(out[2]), back.dweight = out[3].data_ptr<float>(), back.partial = partial.data_ptr<float>();
  cuda::rms_norm_backward(back, nullptr);
  return out;
}

TEST(CudaEmulatedElementwise, NormsEqualTheirTwins) {
  for (auto type : {at::kFloat, at::kBFloat16})
    for (auto [N, D] : {std::pair<int64_t, int64_t>{1, 5}, {9, 17}, {130, 64}, {5, 512}, {3, 700}}) {
      const std::string name = fmt::format("{} x {} {}", N, D, c10::toString(type));
      const auto wide = random_floats({N, D + 3}, 1).to(type), x = wide.narrow(1, 2, D);
      const auto weight = random_floats({D}, 3), dy = random_floats({N, D}, 4).to(type);
      const at::Tensor residual = D == 17 ? random_floats({N, D}, 2).to(type) : at::Tensor();
      const at::Tensor sum = residual.defined() ? x + residual : x;
      const auto got = norm_on(x, residual, weight, dy);
      const auto twin = [](const Tensors& in) { return Tensors{ref::rms_norm(in[0], in[1], 1e-5, 1)}; };
      expect_close(got[0], twin({sum.to(at::kDouble), weight.to(at::kDouble)})[0], tolerance(type), name + " y");
      const auto gradients = oracle_gradients(twin, {sum, weight}, {dy});
      expect_close(got[2], gradients[0], 2 * tolerance(type), name + " ds");
      expect_close(got[3] - 1, gradients[1], 4e-6, name + " dweight");
      emulator::order() = Order::backward;
      const auto again = norm_on(x, residual, weight, dy);
      emulator::order() = Order::forward;
      for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], again[i])) << name << " output " << i;
    }
}

TEST(CudaEmulatedElementwise, ActivationsEqualTheirTwins) {
  for (Activation kind :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::relu2})
    for (auto type : {at::kFloat, at::kBFloat16}) {
      const int64_t N = 7, F = 300;
      const auto gate_up = random_floats({N, 2 * F}, 1, 3).to(type), dh = random_floats({N, F}, 2).to(type);
      const auto h = at::empty({N, F}, gate_up.options()), gradient = at::empty({N, 2 * F}, gate_up.options());
      cuda::Gated job;
      job.type = type_of(gate_up), job.rows = N, job.columns = F;
      job.gate_up = gate_up.const_data_ptr(), job.gate_up_stride = 2 * F;
      job.out = h.data_ptr(), job.out_stride = F;
      cuda::gated(job, static_cast<int>(kind), nullptr);
      job.dh = dh.const_data_ptr(), job.out = gradient.data_ptr(), job.out_stride = 2 * F;
      cuda::gated(job, static_cast<int>(kind), nullptr);
      const std::string name = fmt::format("{} {}", activation_name(kind), c10::toString(type));
      expect_close(h, ref::gated(gate_up.to(at::kDouble), kind), tolerance(type), name);
      const auto twin = [&](const Tensors& in) { return Tensors{ref::gated(in[0], kind)}; };
      expect_close(gradient, oracle_gradients(twin, {gate_up}, {dh})[0], tolerance(type), name + " backward");
    }
}

TEST(CudaEmulatedElementwise, RopeHasTheBitsOfTheCpu) {
  const int64_t N = 9, H = 3, D = 20, R = 12;
  const auto angle = at::outer(at::arange(64, at::kDouble), at::pow(10000.0, at::arange(R / 2, at::kDouble) / -R));
  const auto cos = angle.cos().to(at::kFloat), sin = angle.sin().to(at::kFloat);
  const auto positions = random_ids(N, 0, 64, 7);
  for (bool interleaved : {false, true})
    for (bool inverse : {false, true}) {
      const auto x = random_floats({N, H, D}, 1), expected = x.clone();
      rope_(expected.narrow(2, 4, R), positions, cos, sin, interleaved, inverse);
      cuda::Rope job;
      job.type = cuda::Type::float32, job.rows = N, job.heads = H, job.half = R / 2;
      job.x = x.narrow(2, 4, R).data_ptr(), job.row_stride = H * D, job.head_stride = D;
      job.positions = positions.const_data_ptr<int32_t>(), job.table_rows = 64;
      job.cos = cos.const_data_ptr<float>(), job.sin = sin.const_data_ptr<float>();
      job.interleaved = interleaved, job.inverse = inverse;
      cuda::rope(job, nullptr);
      EXPECT_TRUE(same_bits(x, expected)) << interleaved << inverse;
    }
}

// The lanes and the tree of optim/norm.h, written out.
TEST(CudaEmulatedElementwise, SquaredNormHasTheBitsOfTheCpu) {
  constexpr int64_t piece = 512;
  for (int64_t n : {1, 15, 16, 512, 513, 5003}) {
    const auto flat = random_floats({n}, 3);
    const float* x = flat.const_data_ptr<float>();
    std::vector<double> got((n + piece - 1) / piece, -1);
    cuda::squared_norm_pieces(x, n, piece, got.data(), nullptr);
    for (int64_t k = 0; k < static_cast<int64_t>(got.size()); ++k) {
      double lane[16] = {};
      for (int64_t i = k * piece; i < std::min(n, (k + 1) * piece); ++i)
        lane[i % 16] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      for (int stride = 1; stride < 16; stride *= 2)
        for (int i = 0; i < 16; i += 2 * stride) lane[i] += lane[i + stride];
      EXPECT_EQ(got[k], lane[0]) << n << " piece " << k;
    }
  }
}

TEST(CudaEmulatedElementwise, AdamwEqualsItsFormula) {
  const int64_t n = 777;
  const auto p = random_floats({n}, 1), g = random_floats({n}, 2), m = random_floats({n}, 3),
             v = random_floats({n}, 4).abs();
  const auto m2 = 0.9 * m.to(at::kDouble) + 0.1 * 0.7 * g.to(at::kDouble);
  const auto v2 = 0.95 * v.to(at::kDouble) + 0.05 * (0.7 * g.to(at::kDouble)).square();
  const auto p2 = 0.999 * p.to(at::kDouble) - 0.01 * m2 / (v2.sqrt() * 1.5 + 1e-8);
  cuda::AdamwRun run;
  run.p = p.data_ptr(), run.g = g.data_ptr<float>(), run.m = m.data_ptr<float>(), run.v = v.data_ptr<float>();
  run.n = n, run.decay = 0.999f;
  cuda::adamw(run, {0.7f, 0.1f, 0.95f, 0.05f, 1.5f, 1e-8f, 0.01f, true}, nullptr);
  expect_close(m, m2, 1e-6, "m"), expect_close(v, v2, 1e-6, "v"), expect_close(p, p2, 1e-6, "p");
  EXPECT_TRUE(g.eq(0).all().item<bool>());
}

}  // namespace
}  // namespace cairn::kernels
