// labels: quick
#include "models/kernels/activation.h"

#include <limits>

#include "models/kernels/ref/activation.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

constexpr Activation kAll[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu,
                               Activation::relu2};

TEST(Activation, GatedEqualsItsTwin) {
  for (Activation kind : kAll) {
    for (auto [N, F] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {7, 43}, {300, 172}}) {
      const std::string name = activation_name(kind) + std::string(" F ") + std::to_string(F);
      const auto gate_up = random_floats({N, 2 * F}, 1, 3), dh = random_floats({N, F}, 2);
      expect_close(gated_forward(gate_up, kind), ref::gated(gate_up.to(at::kDouble), kind), 5e-7, name);
      const auto gradient = gated_backward(dh, gate_up, kind);
      auto twin = [&](const Tensors& in) { return Tensors{ref::gated(in[0], kind)}; };
      expect_close(gradient, oracle_gradients(twin, {gate_up}, {dh})[0], 1e-6, name + " backward");
      // The kinks of relu lie too close to some elements for the differences.
      if (kind != Activation::relu) expect_finite_differences(twin, {gate_up}, {dh}, {gradient}, 1e-5, name);

      // The same out of and into a wider tensor, and in place of gate_up.
      const auto wide = random_floats({N, 2 * F + 5}, 3);
      wide.narrow(1, 0, 2 * F).copy_(gate_up);
      EXPECT_TRUE(same_bits(gated_forward(wide.narrow(1, 0, 2 * F), kind), gated_forward(gate_up, kind))) << name;
      const auto view = wide.narrow(1, 0, 2 * F), beside = wide.narrow(1, 2 * F, 5).clone();
      gated_backward(dh, view, kind, view);
      EXPECT_TRUE(same_bits(view, gradient)) << name;
      EXPECT_TRUE(same_bits(wide.narrow(1, 2 * F, 5), beside)) << name;
    }
  }
}

TEST(Activation, PlainEqualsItsTwin) {
  for (Activation kind : kAll) {
    for (int64_t n : {1, 31, 20001}) {
      const auto x = random_floats({n}, 1, 3), dy = random_floats({n}, 2);
      expect_close(activation_forward(x, kind), ref::activation(x.to(at::kDouble), kind), 5e-7, activation_name(kind));
      auto twin = [&](const Tensors& in) { return Tensors{ref::activation(in[0], kind)}; };
      expect_close(activation_backward(dy, x, kind), oracle_gradients(twin, {x}, {dy})[0], 1e-6, activation_name(kind));
    }
  }
}

// Element by element, far from and near to zero: |error| <= 4e-7 * max(1, |x|).
TEST(Activation, OverTheWholeRange) {
  const auto x = at::cat({at::linspace(-40, 40, 40001), at::logspace(-30, 1, 2000), -at::logspace(-30, 1, 2000),
                          at::tensor({-1e10f, -1e4f, -100.0f, 0.0f, 100.0f, 1e4f, 1e10f})});
  for (Activation kind : kAll) {
    const auto wide = x.to(at::kDouble);
    const auto value = activation_forward(x, kind).to(at::kDouble), expected = ref::activation(wide, kind);
    const auto error =
        (value - expected).abs() / at::maximum(at::maximum(wide.abs(), expected.abs()), at::ones_like(wide));
    EXPECT_LE(error.max().item<double>(), 4e-7) << activation_name(kind);
    const auto slope = activation_backward(at::ones_like(x), x, kind);
    auto twin = [&](const Tensors& in) { return Tensors{ref::activation(in[0], kind)}; };
    const auto expected_slope = oracle_gradients(twin, {x}, {at::ones_like(x)})[0];
    const auto slope_error =
        (slope.to(at::kDouble) - expected_slope).abs() / at::maximum(expected_slope.abs(), at::ones_like(wide));
    EXPECT_LE(slope_error.max().item<double>(), 6e-7) << activation_name(kind);
  }
}

TEST(Activation, NaNStaysNaN) {
  const auto x = at::full({20}, std::numeric_limits<float>::quiet_NaN());
  for (Activation kind :
       {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::relu2}) {
    EXPECT_TRUE(activation_forward(x, kind).isnan().all().item<bool>()) << activation_name(kind);
    EXPECT_TRUE(kind == Activation::relu || activation_backward(at::ones_like(x), x, kind).isnan().all().item<bool>())
        << activation_name(kind);
  }
}

TEST(Activation, SameBitsEverywhere) {
  const auto gate_up = random_floats({501, 2 * 85}, 1, 4), dh = random_floats({501, 85}, 2);
  for (Activation kind : kAll) {
    expect_same_bits_everywhere(
        [&] {
          return Tensors{gated_forward(gate_up, kind), gated_backward(dh, gate_up, kind),
                         activation_forward(gate_up, kind), activation_backward(gate_up, gate_up, kind)};
        },
        activation_name(kind));
  }
}

TEST(Activation, Names) {
  for (Activation kind : kAll) EXPECT_EQ(activation_from_name(activation_name(kind)), kind);
  EXPECT_EQ(activation_from_name("gelu_new"), Activation::gelu_tanh);
  EXPECT_EQ(activation_from_name("swish"), Activation::silu);
  EXPECT_NE(message_of([] { activation_from_name("gleu"); }).find("unknown activation 'gleu' (known: silu"),
            std::string::npos);
}

TEST(Activation, RefusesWhatItCannotRead) {
  const auto x = random_floats({4, 7}, 1);
  EXPECT_NE(message_of([&] { gated_forward(x, Activation::silu); }).find("expected [N, 2F]"), std::string::npos);
  EXPECT_NE(message_of([&] {
              gated_backward(x, x.narrow(1, 0, 6), Activation::silu);
            }).find("dh: expected contiguous Float [4, 3]"),
            std::string::npos);
  EXPECT_NE(message_of([&] { activation_forward(x.t(), Activation::silu); }).find("contiguous"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
