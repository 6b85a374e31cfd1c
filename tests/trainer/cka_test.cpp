// labels: quick
// Unbiased HSIC from sums over features against its definition with [n, n] matrices. With models:
// oracles/probes_test.py.
#include "trainer/analysis/cka.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

namespace cairn::analysis {
namespace {

// Song et al. 2012, equation 5, as it is written.
double defined(const at::Tensor& x, const at::Tensor& y) {
  const double n = x.size(0);
  const auto hollow = [](const at::Tensor& z) {
    const at::Tensor k = at::mm(z, z.t());
    return k - at::diag(k.diag());
  };
  const at::Tensor K = hollow(x), L = hollow(y), ones = at::ones({x.size(0)}, at::kDouble);
  const double trace = at::mm(K, L).trace().item<double>(),
               sums = (ones.dot(at::mv(K, ones)) * ones.dot(at::mv(L, ones))).item<double>(),
               both = ones.dot(at::mv(at::mm(K, L), ones)).item<double>();
  return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3));
}

double in_parts(const at::Tensor& x, const at::Tensor& y, const std::vector<int64_t>& parts) {
  HsicSums sums;
  int64_t first = 0;
  for (const int64_t count : parts) {
    sums.add(x.narrow(0, first, count), y.narrow(0, first, count));
    first += count;
  }
  return sums.value();
}

TEST(Hsic, FromSumsIsTheDefinition) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(1);
  for (const int64_t n : {4, 7, 40}) {
    const auto options = at::TensorOptions().dtype(at::kDouble);
    const at::Tensor x = at::randn({n, 5}, generator, options) + 3,
                     y = at::mm(x, at::randn({5, 9}, generator, options)) + at::randn({n, 9}, generator, options);
    for (const auto& [a, b] : {std::pair{x, y}, std::pair{x, x}, std::pair{y, y}}) {
      const double expected = defined(a, b);
      EXPECT_NEAR(in_parts(a, b, {n}), expected, 1e-9 * std::abs(expected)) << n;
      EXPECT_NEAR(in_parts(a, b, {3, n - 3}), expected, 1e-9 * std::abs(expected)) << n;
      // A shift of all tokens changes nothing.
      EXPECT_NEAR(in_parts(a + 100, b - 50, {1, n - 1}), expected, 1e-7 * std::abs(expected)) << n;
    }
  }
  EXPECT_TRUE(std::isnan(in_parts(at::randn({3, 2}), at::randn({3, 2}), {3})));
}

// Of independent activations it is zero on average, where the biased estimator is not.
TEST(Hsic, IsUnbiased) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(2);
  double sum = 0, biased = 0;
  const int64_t n = 8, draws = 400;
  for (int64_t i = 0; i < draws; ++i) {
    const at::Tensor x = at::randn({n, 6}, generator).to(at::kDouble), y = at::randn({n, 6}, generator).to(at::kDouble);
    sum += in_parts(x, y, {n});
    const at::Tensor xc = x - x.mean(0), yc = y - y.mean(0);
    biased += at::mm(xc.t(), yc).square().sum().item<double>() / ((n - 1) * (n - 1));
  }
  EXPECT_LT(std::abs(sum / draws), 0.1 * biased / draws);
}

TEST(Hsic, CkaIsOneForARotationAndAScale) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const at::Tensor x = at::randn({50, 6}, generator).to(at::kDouble);
  const at::Tensor q = std::get<0>(at::linalg_qr(at::randn({6, 6}, generator).to(at::kDouble)));
  const at::Tensor y = 3 * at::mm(x, q) + 2;
  EXPECT_NEAR(in_parts(x, y, {50}) / std::sqrt(in_parts(x, x, {50}) * in_parts(y, y, {50})), 1, 1e-12);
}

}  // namespace
}  // namespace cairn::analysis
