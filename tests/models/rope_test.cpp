// labels: quick
#include "models/kernels/rope.h"

#include "models/kernels/ref/rope.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

struct Table {
  at::Tensor cos, sin;
};
Table table(int64_t length, int64_t half, double factor = 1) {
  const auto angle =
      at::outer(at::arange(length, at::kDouble), at::pow(10000.0, at::arange(half, at::kDouble) / -half));
  return {(angle.cos() * factor).to(at::kFloat), (angle.sin() * factor).to(at::kFloat)};
}

TEST(Rope, EqualsItsTwin) {
  for (bool interleaved : {false, true}) {
    for (auto [N, H, D, R] : {std::array<int64_t, 4>{1, 1, 2, 2},
                              {9, 3, 16, 16},
                              {300, 4, 64, 64},
                              {70, 2, 80, 20},
                              {17, 5, 96, 96},
                              {64, 2, 38, 34}}) {
      const auto [cos, sin] = table(512, R / 2, 1.3);
      const auto positions = random_ids(N, 0, 512, 7);
      const auto x = random_floats({N, H, D}, 1), dy = random_floats({N, H, D}, 2);
      const std::string name = std::to_string(D) + "/" + std::to_string(R) + (interleaved ? " interleaved" : " halves");
      auto y = x.clone();
      rope_(y, positions, cos, sin, interleaved, false);
      expect_close(y, ref::rope(x.to(at::kDouble), positions, cos, sin, interleaved), 5e-7, name);

      auto dx = dy.clone();
      rope_(dx, positions, cos, sin, interleaved, true);
      auto twin = [&](const Tensors& in) { return Tensors{ref::rope(in[0], positions, cos, sin, interleaved)}; };
      expect_close(dx, oracle_gradients(twin, {x}, {dy})[0], 5e-7, name + " backward");
      expect_finite_differences(twin, {x}, {dy}, {dx}, 1e-5, name);
    }
  }
}

// q and k inside a fused product; what lies between the heads is left alone.
TEST(Rope, RotatesViewsInPlace) {
  const int64_t N = 40, H = 3, K = 2, D = 24;
  const auto [cos, sin] = table(64, D / 2);
  const auto positions = random_ids(N, 0, 64, 7);
  for (bool interleaved : {false, true}) {
    const auto fused = random_floats({N, (H + 2 * K) * D}, 1), before = fused.clone();
    rope_(fused.view({N, H + 2 * K, D}).narrow(1, H, K), positions, cos, sin, interleaved, false);
    const auto split = fused.view({N, H + 2 * K, D}), old = before.view({N, H + 2 * K, D});
    EXPECT_TRUE(same_bits(split.narrow(1, 0, H), old.narrow(1, 0, H)));
    EXPECT_TRUE(same_bits(split.narrow(1, H + K, K), old.narrow(1, H + K, K)));
    expect_close(split.narrow(1, H, K), ref::rope(old.narrow(1, H, K), positions, cos, sin, interleaved), 5e-7, "k");
  }
}

TEST(Rope, SameBitsEverywhere) {
  for (bool interleaved : {false, true}) {
    const auto [cos, sin] = table(128, 22);
    const auto positions = random_ids(1500, 0, 128, 7);
    const auto x = random_floats({1500, 3, 48}, 1);
    expect_same_bits_everywhere(
        [&] {
          auto y = x.clone();
          rope_(y, positions, cos, sin, interleaved, false);
          return Tensors{y};
        },
        "rope");
  }
}

TEST(Rope, RefusesPositionsOutsideTheTable) {
  const auto [cos, sin] = table(8, 4);
  const auto x = random_floats({2, 1, 8}, 1);
  for (int bad : {8, -1}) {
    const auto positions = at::tensor({0, bad}, at::kInt);
    EXPECT_NE(message_of([&] {
                rope_(x, positions, cos, sin, false, false);
              }).find("positions[1] is " + std::to_string(bad) + ", outside the table of 8"),
              std::string::npos);
  }
  EXPECT_NE(message_of([&] {
              rope_(x.narrow(2, 0, 6), at::zeros({2}, at::kInt), cos, sin, false, false);
            }).find("R at most 6"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              rope_(x, at::zeros({2}, at::kLong), cos, sin, false, false);
            }).find("positions: expected contiguous Int [2]"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
