// What every kernel is asked: does it equal its plain twin in float64, does its gradient equal finite differences, do
// its bits depend on the number of threads or on the instruction set.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "hwy/targets.h"

namespace cairn::kernels::testing {

using Tensors = std::vector<at::Tensor>;

inline at::Tensor random_floats(at::IntArrayRef shape, uint64_t seed, double scale = 1.0) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions(at::kFloat)) * scale;
}
inline at::Tensor random_ids(int64_t n, int64_t low, int64_t high, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randint(low, high, {n}, generator, at::TensorOptions(at::kLong)).to(at::kInt);
}

// |actual - expected| <= tolerance * (1 + max |expected|), element by element; NaN fails.
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                         const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (actual.numel() == 0) return;
  const at::Tensor a = actual.detach().to(at::kDouble), e = expected.detach().to(at::kDouble);
  const double worst = (a - e).abs().max().item<double>(), bound = tolerance * (1 + e.abs().max().item<double>());
  EXPECT_TRUE(worst <= bound) << what << ": worst difference " << worst << ", allowed " << bound;
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  const at::Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
         std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

// Restricts Highway to one instruction set until the end of the scope.
class OnlyTarget {
 public:
  explicit OnlyTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~OnlyTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};
class Threads {
 public:
  explicit Threads(int n) : before_(at::get_num_threads()) { at::set_num_threads(n); }
  ~Threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

// `run` returns the same bits with 1, 2, 3 and 4 threads, and on AVX2 and AVX-512 where the machine has both; nearly
// the same on SSE4, which has no fused multiply-add.
inline void expect_same_bits_everywhere(const std::function<Tensors()>& run, const std::string& what) {
  auto compare = [&](const Tensors& expected, const std::string& where) {
    const Tensors got = run();
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(same_bits(got[i], expected[i])) << what << ", output " << i << ", " << where;
  };
  Tensors expected;
  {
    Threads one(1);
    expected = run();
  }
  for (int n : {2, 3, 4}) {
    Threads threads(n);
    compare(expected, std::to_string(n) + " threads");
  }
  const int64_t supported = hwy::SupportedTargets();
  if ((supported & HWY_AVX3) && (supported & HWY_AVX2)) {
    OnlyTarget avx2(HWY_AVX2);
    compare(expected, "AVX2");
  }
  if (supported & HWY_SSE4) {
    OnlyTarget sse4(HWY_SSE4);
    const Tensors got = run();
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i].defined()) expect_close(got[i], expected[i], 1e-5, what + ", output " + std::to_string(i) + ", SSE4");
    }
  }
}

// The gradients of sum(f(inputs) * cotangents) by autograd in float64: the oracle of a hand-written backward pass.
inline Tensors oracle_gradients(const std::function<Tensors(const Tensors&)>& f, const Tensors& inputs,
                                const Tensors& cotangents) {
  at::AutoGradMode on(true);
  Tensors wide, weights;
  for (const auto& x : inputs) wide.push_back(x.detach().to(at::kDouble).requires_grad_());
  for (const auto& c : cotangents) weights.push_back(c.to(at::kDouble));
  return torch::autograd::grad(f(wide), wide, weights);
}

// Central differences of the twin in float64 along random directions against the hand-written gradients.
inline void expect_finite_differences(const std::function<Tensors(const Tensors&)>& f, const Tensors& inputs,
                                      const Tensors& cotangents, const Tensors& gradients, double tolerance,
                                      const std::string& what) {
  auto value = [&](const Tensors& at) {
    const Tensors out = f(at);
    double total = 0;
    for (size_t i = 0; i < out.size(); ++i) total += (out[i] * cotangents[i].to(at::kDouble)).sum().item<double>();
    return total;
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor direction = random_floats(inputs[i].sizes(), 1000 + i).to(at::kDouble);
    Tensors up, down;
    for (const auto& x : inputs) up.push_back(x.to(at::kDouble)), down.push_back(x.to(at::kDouble));
    const double h = 1e-5;
    up[i] = up[i] + h * direction, down[i] = down[i] - h * direction;
    const double numeric = (value(up) - value(down)) / (2 * h);
    const at::Tensor products = gradients[i].to(at::kDouble) * direction;
    const double analytic = products.sum().item<double>(), size = products.abs().sum().item<double>();
    EXPECT_NEAR(analytic, numeric, tolerance * (1 + size)) << what << ", input " << i;
  }
}

// The message of the std::invalid_argument that f throws; empty where it throws none.
inline std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

}  // namespace cairn::kernels::testing
