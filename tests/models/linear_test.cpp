// labels: quick
// Linear layers: against the twin in float64, and what the bits of a row may depend on.
#include "models/kernels/linear.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <ATen/Parallel.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "models/kernels/ref/linear.h"

namespace cairn::kernels {
namespace {

// As the program does before MKL loads: without it MKL splits long sums over the threads.
const bool kReproducible = setenv("MKL_CBWR", "AVX2,STRICT", 0) == 0;

struct Shape {
  int64_t rows, in, out;
  std::string name() const {
    return std::to_string(rows) + " rows " + std::to_string(in) + " -> " + std::to_string(out);
  }
};
const std::vector<Shape> kShapes = {{1, 1, 1},     {3, 7, 5},    {8, 64, 33},     {9, 48, 64},
                                    {31, 20, 259}, {64, 96, 80}, {130, 576, 192}, {257, 100, 36}};

double error(const at::Tensor& x, const at::Tensor& exact) {
  const double worst = (x.to(at::kDouble) - exact).abs().max().item<double>();
  return std::isnan(worst) ? INFINITY : worst / (1 + exact.abs().max().item<double>());
}
bool same_bits(const at::Tensor& x, const at::Tensor& y) {
  return at::equal(x.contiguous().view(at::kInt), y.contiguous().view(at::kInt));
}

TEST(Linear, EqualsTheTwinForwardAndBackward) {
  for (const auto& s : kShapes) {
    for (bool with_bias : {false, true}) {
      at::manual_seed(s.rows + s.in);
      const auto x = at::randn({s.rows, s.in}), w = at::randn({s.out, s.in}), dy = at::randn({s.rows, s.out});
      const auto b = with_bias ? at::randn({s.out}) : at::Tensor();
      std::vector<at::Tensor> leaf{x.to(at::kDouble).requires_grad_(), w.to(at::kDouble).requires_grad_()};
      if (with_bias) leaf.push_back(b.to(at::kDouble).requires_grad_());
      const auto y = ref::linear(leaf[0], leaf[1], with_bias ? leaf[2] : b);
      const auto grads = torch::autograd::grad({y}, leaf, {dy.to(at::kDouble)});
      const auto before = at::randn({s.out, s.in}), bias_before = at::randn({s.out});
      const auto dweight = before.clone(), dbias = with_bias ? bias_before.clone() : at::Tensor();
      linear_backward_weight_(dweight, dbias, dy, x);
      EXPECT_LT(error(linear_forward(x, w, b), y.detach()), 2e-6) << s.name();
      EXPECT_LT(error(linear_backward_input(dy, w), grads[0]), 2e-6) << s.name();
      EXPECT_LT(error(dweight, before.to(at::kDouble) + grads[1]), 2e-6) << s.name();
      if (with_bias) {
        EXPECT_LT(error(dbias, bias_before.to(at::kDouble) + grads[2]), 2e-6) << s.name();
      }
    }
  }
}

TEST(Linear, TwinsGradientsAreThoseOfFiniteDifferences) {
  const auto x = at::randn({3, 5}, at::kDouble), w = at::randn({4, 5}, at::kDouble), b = at::randn({4}, at::kDouble);
  const auto dy = at::randn({3, 4}, at::kDouble);
  std::vector<at::Tensor> leaf{x.clone().requires_grad_(), w.clone().requires_grad_(), b.clone().requires_grad_()};
  const auto grads = torch::autograd::grad({ref::linear(leaf[0], leaf[1], leaf[2])}, leaf, {dy});
  const std::vector<at::Tensor> value{x, w, b};
  for (size_t which = 0; which < value.size(); ++which) {
    double* data = value[which].data_ptr<double>();
    for (int64_t i = 0; i < value[which].numel(); ++i) {
      const double kept = data[i], h = 1e-5;
      data[i] = kept + h;
      const double up = (ref::linear(x, w, b) * dy).sum().item<double>();
      data[i] = kept - h;
      const double down = (ref::linear(x, w, b) * dy).sum().item<double>();
      data[i] = kept;
      EXPECT_NEAR((up - down) / (2 * h), grads[which].data_ptr<double>()[i], 1e-8);
    }
  }
}

// 1 to 64 rows, 1 to 8 threads: one row, one result, whoever stands beside it (up to 8 rows the decoding kernel, above
// it MKL).
TEST(Linear, BitsOfARowDependOnNeitherThreadsNorOtherRows) {
  const int before = at::get_num_threads();
  for (const auto& [in, out] : {std::pair{64, 96}, {576, 192}, {36, 259}}) {
    at::manual_seed(in);
    const auto x = at::randn({64, in}), w = at::randn({out, in}), b = at::randn({out}), dy = at::randn({64, out});
    at::set_num_threads(1);
    const auto few = linear_forward(x.narrow(0, 0, 8), w, b), many = linear_forward(x, w, b),
               back = linear_backward_input(dy, w);
    for (int threads = 1; threads <= 8; ++threads) {
      at::set_num_threads(threads);
      for (int64_t rows = 1; rows <= 64; rows += rows < 18 ? 1 : 5) {
        const std::string what = std::to_string(rows) + " rows " + std::to_string(threads) + " threads " +
                                 std::to_string(in) + " -> " + std::to_string(out);
        const auto some = x.narrow(0, 64 - rows, rows);
        EXPECT_TRUE(same_bits(linear_forward(x.narrow(0, 0, rows), w, b), (rows <= 8 ? few : many).narrow(0, 0, rows)))
            << what;
        if (rows > 8) {
          EXPECT_TRUE(same_bits(linear_forward(some, w, b), many.narrow(0, 64 - rows, rows))) << what;
        }
        EXPECT_TRUE(same_bits(linear_backward_input(dy.narrow(0, 0, rows), w), back.narrow(0, 0, rows))) << what;
      }
    }
  }
  at::set_num_threads(before);
}

TEST(Linear, BitsOfTheWeightsGradientDoNotDependOnThreads) {
  const int before = at::get_num_threads();
  for (const auto& s : {Shape{512, 64, 96}, Shape{2048, 64, 64}, Shape{300, 36, 259}, Shape{24, 8, 8},
                        Shape{512, 576, 192}, Shape{1000, 6, 5}}) {
    at::manual_seed(s.in);
    const auto x = at::randn({s.rows, s.in}), dy = at::randn({s.rows, s.out});
    std::vector<at::Tensor> first;
    for (int threads = 1; threads <= 8; ++threads) {
      at::set_num_threads(threads);
      const auto dweight = at::ones({s.out, s.in}), dbias = at::ones({s.out});
      linear_backward_weight_(dweight, dbias, dy, x);
      if (first.empty()) first = {dweight, dbias};
      EXPECT_TRUE(same_bits(dweight, first[0])) << s.name() << ", " << threads << " threads";
      EXPECT_TRUE(same_bits(dbias, first[1])) << s.name() << ", " << threads << " threads";
    }
  }
  at::set_num_threads(before);
}

// Decoding has no MKL in it: the bits are the same with AVX2 and AVX-512. A weight may be a slice.
TEST(Linear, DecodesAlikeWithEveryVectorWidth) {
  const bool both = (hwy::SupportedTargets() & HWY_AVX3) != 0 && (hwy::SupportedTargets() & HWY_AVX2) != 0;
  for (const auto& s : kShapes) {
    if (s.rows > 64) continue;
    const auto x = at::randn({std::min<int64_t>(s.rows, 8), s.in}), b = at::randn({s.out}),
               dy = at::randn({s.rows, s.out});
    const auto w = at::randn({s.out, s.in + 3}).narrow(1, 1, s.in);
    const auto run = [&] {
      const auto dbias = at::ones({s.out});
      linear_backward_weight_({}, dbias, dy, at::randn({s.rows, s.in}));
      return std::pair{linear_decode(x, w, b), dbias};
    };
    const auto wide = run();
    EXPECT_LT(error(wide.first, ref::linear(x.to(at::kDouble), w.to(at::kDouble), b.to(at::kDouble))), 1e-6)
        << s.name();
    if (!both) continue;
    hwy::SetSupportedTargetsForTest(HWY_AVX2);
    const auto narrow = run();
    hwy::SetSupportedTargetsForTest(0);
    EXPECT_TRUE(same_bits(narrow.first, wide.first)) << s.name();
    EXPECT_TRUE(same_bits(narrow.second, wide.second)) << s.name();
  }
}

TEST(Linear, RefusesShapesThatDoNotFit) {
  const auto x = at::randn({4, 6}), w = at::randn({5, 7});
  EXPECT_THROW(linear_forward(x, w, {}), std::invalid_argument);
  EXPECT_THROW(linear_forward(x.to(at::kDouble), x, {}), std::invalid_argument);
  EXPECT_THROW(linear_decode(at::randn({9, 7}), w, {}), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::kernels
