// labels: quick
#include "models/kernels/dropout.h"

#include "models/kernels/ref/dropout.h"
#include "models/random.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

const DropoutKey kKey{0x123456789abcdef0ull, 0xfedcba9876543210ull, 7};

TEST(Dropout, EqualsItsTwinToTheBit) {
  for (auto [N, D] : {std::pair<int64_t, int64_t>{1, 1}, {3, 16}, {5, 64}, {9, 100}, {40, 257}}) {
    for (double p : {0.0, 0.1, 0.5, 0.999}) {
      const auto x = random_floats({N, D}, 1);
      EXPECT_TRUE(same_bits(dropout(x, p, kKey), ref::dropout(x, p, kKey))) << N << " " << D << " " << p;
      // Its own backward pass: the mask times the gradient.
      const auto dy = random_floats({N, D}, 2);
      auto twin = [&](const Tensors& in) { return Tensors{ref::dropout(in[0], p, kKey)}; };
      expect_close(dropout(dy, p, kKey), oracle_gradients(twin, {x}, {dy})[0], 1e-6, "backward");
    }
  }
}

// The layout of the draws, spelled out once more: recorded runs depend on it.
TEST(Dropout, DrawsAreAtTheirPlaces) {
  const auto y = dropout(at::ones({2, 130}), 0.25, kKey);
  const Philox random{kKey.seed, Purpose::dropout, kKey.stream};
  for (auto [n, d, word, block] :
       {std::array<int64_t, 4>{0, 0, 0, 0}, {1, 17, 1, 1}, {0, 63, 3, 15}, {1, 64, 0, 16}, {1, 129, 0, 33}}) {
    const uint32_t draw = random.block(static_cast<uint64_t>(7 + n) << 32 | static_cast<uint64_t>(block))[word];
    EXPECT_EQ(y[n][d].item<float>(), draw >= 0x40000000u ? static_cast<float>(1 / 0.75) : 0.0f) << n << " " << d;
  }
}

TEST(Dropout, KeepsTheRightShareAndMean) {
  const int64_t N = 500, D = 999;
  for (double p : {0.1, 0.5}) {
    const auto y = dropout(at::ones({N, D}), p, kKey).to(at::kDouble);
    const double kept = y.gt(0).to(at::kDouble).mean().item<double>(), sigma = std::sqrt(p * (1 - p) / (N * D));
    EXPECT_NEAR(kept, 1 - p, 5 * sigma);
    EXPECT_NEAR(y.mean().item<double>(), 1, 5 * sigma / (1 - p));
  }
}

// A micro-batch draws the mask of its rows in the whole batch; other seeds and streams draw others.
TEST(Dropout, MaskIsAFunctionOfTheGlobalRow) {
  const auto x = random_floats({20, 70}, 1);
  const auto whole = dropout(x, 0.3, kKey);
  DropoutKey later = kKey;
  later.first_row += 12;
  EXPECT_TRUE(same_bits(dropout(x.narrow(0, 12, 8), 0.3, later), whole.narrow(0, 12, 8)));
  EXPECT_FALSE(same_bits(dropout(x, 0.3, {kKey.seed + 1, kKey.stream, 7}), whole));
  EXPECT_FALSE(same_bits(dropout(x, 0.3, {kKey.seed, kKey.stream + 1, 7}), whole));
}

TEST(Dropout, SameBitsEverywhere) {
  const auto x = random_floats({400, 150}, 1);
  expect_same_bits_everywhere([&] { return Tensors{dropout(x, 0.2, kKey)}; }, "dropout");
}

TEST(Dropout, RefusesImpossibleRates) {
  for (double p : {-0.1, 1.0, std::nan("")}) {
    EXPECT_NE(message_of([&] { dropout(at::ones({2, 2}), p, kKey); }).find("is not in [0, 1)"), std::string::npos);
  }
  EXPECT_NE(message_of([&] {
              dropout(at::ones({2, 2}).to(at::kDouble), 0.5, kKey);
            }).find("Double"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
