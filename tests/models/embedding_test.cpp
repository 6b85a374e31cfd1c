// labels: quick
#include "models/kernels/embedding.h"

#include "models/kernels/ref/embedding.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

TEST(Embedding, EqualsItsTwin) {
  for (double scale : {1.0, 7.5}) {
    for (auto [V, D, N] : {std::array<int64_t, 3>{1, 1, 1}, {11, 16, 40}, {301, 50, 1000}, {5, 130, 3000}}) {
      const auto weight = random_floats({V, D}, 1), ids = random_ids(N, 0, V, 2), dy = random_floats({N, D}, 3);
      const auto y = embedding_forward(weight, ids, scale);
      EXPECT_TRUE(same_bits(y, ref::embedding(weight, ids, scale)));
      auto dweight = at::ones({V, D});
      embedding_backward_(dweight, dy, ids, scale);
      auto twin = [&](const Tensors& in) { return Tensors{ref::embedding(in[0], ids, scale)}; };
      expect_close(dweight - 1, oracle_gradients(twin, {weight}, {dy})[0], 5e-6, "dweight");
      expect_finite_differences(twin, {weight}, {dy}, {dweight - 1}, 1e-5, "dweight");
    }
  }
}

// The sum is that of a plain loop over n, to the bit.
TEST(Embedding, AddsInTokenOrder) {
  const int64_t V = 3, D = 40, N = 2000;
  const auto ids = random_ids(N, 0, V, 2), dy = random_floats({N, D}, 3);
  auto dweight = random_floats({V, D}, 4), expected = dweight.clone();
  embedding_backward_(dweight, dy, ids, 1.0);
  for (int64_t n = 0; n < N; ++n) expected.select(0, ids[n].item<int>()).add_(dy[n]);
  EXPECT_TRUE(same_bits(dweight, expected));
}

TEST(Embedding, SameBitsEverywhere) {
  const auto weight = random_floats({50, 67}, 1), ids = random_ids(3000, 0, 50, 2), dy = random_floats({3000, 67}, 3);
  expect_same_bits_everywhere(
      [&] {
        auto dweight = at::ones({50, 67});
        embedding_backward_(dweight, dy, ids, 3.3);
        return Tensors{embedding_forward(weight, ids, 3.3), dweight};
      },
      "embedding");
}

TEST(Embedding, RefusesIdsOutsideTheVocabulary) {
  const auto weight = random_floats({10, 4}, 1);
  for (int bad : {10, -1}) {
    const auto ids = at::tensor({3, 0, bad}, at::kInt);
    const std::string expected = "ids[2] is " + std::to_string(bad) + ", outside the vocabulary of 10";
    EXPECT_NE(message_of([&] { embedding_forward(weight, ids, 1); }).find(expected), std::string::npos);
    EXPECT_NE(message_of([&] {
                embedding_backward_(weight, at::zeros({3, 4}), ids, 1);
              }).find(expected),
              std::string::npos);
  }
  EXPECT_NE(
      message_of([&] { embedding_forward(weight, at::zeros({2}, at::kLong), 1); }).find("ids: expected contiguous Int"),
      std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
