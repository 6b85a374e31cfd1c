// labels: quick
#include <limits>

#include "models/kernels/ref/activation.h"
#include "models/kernels/ref/rope.h"
#include "models/kernels/rope.h"
#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

class CudaActivation : public CudaTest {};
class CudaRope : public CudaTest {};

constexpr Activation kAll[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                               Activation::relu2};

TEST_F(CudaActivation, GatedEqualsItsTwin) {
  for (Activation kind : kAll)
    for (auto type : {at::kFloat, at::kBFloat16})
      for (auto [N, F] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {7, 43}, {300, 700}}) {
        const std::string name = fmt::format("{} F {} {}", activation_name(kind), F, c10::toString(type));
        const auto gate_up = random_floats({N, 2 * F}, 1, 3).to(type), dh = random_floats({N, F}, 2).to(type);
        const auto device = on_gpu(gate_up);
        const auto h = table->gated_forward(device, kind);
        EXPECT_EQ(h.scalar_type(), type);
        expect_close(h.cpu(), ref::gated(gate_up.to(at::kDouble), kind), tolerance(type), name);
        const auto gradient = table->gated_backward(on_gpu(dh), device, kind, {});
        auto twin = [&](const Tensors& in) { return Tensors{ref::gated(in[0], kind)}; };
        expect_close(gradient.cpu(), oracle_gradients(twin, {gate_up}, {dh})[0], tolerance(type), name + " backward");

        // Into a wider tensor, in place of gate_up.
        const auto wide = on_gpu(random_floats({N, 2 * F + 5}, 3).to(type));
        wide.narrow(1, 0, 2 * F).copy_(device);
        const auto view = wide.narrow(1, 0, 2 * F), beside = wide.narrow(1, 2 * F, 5).clone();
        EXPECT_TRUE(same_bits(table->gated_forward(view, kind).cpu(), h.cpu())) << name;
        table->gated_backward(on_gpu(dh), view, kind, view);
        EXPECT_TRUE(same_bits(view.cpu(), gradient.cpu())) << name;
        EXPECT_TRUE(same_bits(wide.narrow(1, 2 * F, 5).cpu(), beside.cpu())) << name;
      }
}

TEST_F(CudaActivation, OverTheWholeRange) {
  const auto x = at::cat({at::linspace(-40, 40, 40001), at::logspace(-30, 1, 2000), -at::logspace(-30, 1, 2000),
                          at::tensor({-1e10f, -1e4f, -100.0f, 0.0f, 100.0f, 1e4f, 1e10f})});
  for (Activation kind : kAll) {
    const auto wide = x.to(at::kDouble);
    const auto value = table->activation_forward(on_gpu(x), kind).cpu().to(at::kDouble);
    const auto expected = ref::activation(wide, kind);
    const auto error =
        (value - expected).abs() / at::maximum(at::maximum(wide.abs(), expected.abs()), at::ones_like(wide));
    EXPECT_LE(error.max().item<double>(), 1e-6) << activation_name(kind);
    const auto slope = table->activation_backward(on_gpu(at::ones_like(x)), on_gpu(x), kind).cpu();
    auto twin = [&](const Tensors& in) { return Tensors{ref::activation(in[0], kind)}; };
    const auto expected_slope = oracle_gradients(twin, {x}, {at::ones_like(x)})[0];
    const auto slope_error =
        (slope.to(at::kDouble) - expected_slope).abs() / at::maximum(expected_slope.abs(), at::ones_like(wide));
    EXPECT_LE(slope_error.max().item<double>(), 2e-6) << activation_name(kind);
    const auto nan = on_gpu(at::full({3}, std::numeric_limits<float>::quiet_NaN()));
    EXPECT_TRUE(table->activation_forward(nan, kind).isnan().all().item<bool>()) << activation_name(kind);
  }
}

std::pair<at::Tensor, at::Tensor> angles(int64_t length, int64_t half) {
  const auto angle =
      at::outer(at::arange(length, at::kDouble), at::pow(10000.0, at::arange(half, at::kDouble) / -half));
  return {(angle.cos() * 1.3).to(at::kFloat), (angle.sin() * 1.3).to(at::kFloat)};
}

// float32: to the bit as the CPU's kernel. Views in place; what lies between the heads is left alone.
TEST_F(CudaRope, EqualsTheCpu) {
  for (bool interleaved : {false, true})
    for (bool inverse : {false, true})
      for (auto [N, H, D, R] :
           {std::array<int64_t, 4>{1, 1, 2, 2}, {9, 3, 16, 16}, {300, 4, 64, 64}, {70, 2, 80, 20}, {64, 2, 38, 34}}) {
        const std::string name = fmt::format("{}/{} {} {}", D, R, interleaved, inverse);
        const auto [cos, sin] = angles(512, R / 2);
        const auto positions = random_ids(N, 0, 512, 7);
        const auto fused = random_floats({N, H + 2, D}, 1), device = on_gpu(fused);
        rope_(fused.narrow(1, 1, H), positions, cos, sin, interleaved, inverse);
        table->rope_(device.narrow(1, 1, H), on_gpu(positions), on_gpu(cos), on_gpu(sin), interleaved, inverse);
        EXPECT_TRUE(same_bits(device.cpu(), fused)) << name;

        const auto half = random_floats({N, H, D}, 2).to(at::kBFloat16), half_device = on_gpu(half);
        const auto expected = ref::rope(half.to(at::kDouble), positions, cos, inverse ? -sin : sin, interleaved);
        table->rope_(half_device, on_gpu(positions), on_gpu(cos), on_gpu(sin), interleaved, inverse);
        expect_close(half_device.cpu(), expected, tolerance(at::kBFloat16), name + " bfloat16");
      }
}

TEST_F(CudaRope, RefusesPositionsOutsideTheTable) {
  const auto [cos, sin] = angles(16, 4);
  const auto gpu_cos = on_gpu(cos), gpu_sin = on_gpu(sin), x = on_gpu(random_floats({5, 2, 8}, 1)), before = x.clone();
  const auto positions = on_gpu(at::arange(5, at::kInt));
  table->rope_(x, positions, gpu_cos, gpu_sin, false, false);
  EXPECT_FALSE(same_bits(x.cpu(), before.cpu()));
  // The same tensor with other numbers in it is looked at again.
  positions.narrow(0, 3, 1).fill_(16);
  EXPECT_NE(message_of([&] {
              table->rope_(x, positions, gpu_cos, gpu_sin, false, false);
            }).find("positions[3] is 16, outside the table of 16"),
            std::string::npos);
  positions.narrow(0, 3, 1).fill_(-1);
  EXPECT_NE(message_of([&] { table->rope_(x, positions, gpu_cos, gpu_sin, false, false); }).find("is -1"),
            std::string::npos);
  // So is a table that has become shorter.
  positions.narrow(0, 3, 1).fill_(3);
  table->rope_(x, positions, gpu_cos, gpu_sin, false, false);
  EXPECT_NE(message_of([&] {
              table->rope_(x, positions, gpu_cos.narrow(0, 0, 4), gpu_sin.narrow(0, 0, 4), false, false);
            }).find("positions[4] is 4"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
