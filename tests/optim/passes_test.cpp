// labels: quick
// The vectorised passes against their plain twins, and what must not change a bit: threads, and how parameters lie in
// memory.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <ATen/CPUGeneratorImpl.h>

#include "optim/ema.h"
#include "optim/kernels/ref/passes.h"
#include "optim/norm.h"
#include "optim/optimizer.h"

namespace cairn::optim {
namespace {

struct Model {
  at::Tensor weights, gradients;  // flat
  std::vector<Parameter> parameters;
};

const std::vector<std::pair<std::vector<int64_t>, Role>> kLayout = {
    {{96, 40}, Role::embedding}, {{300, 257}, Role::matrix}, {{17, 33}, Role::matrix}, {{257}, Role::norm},
    {{1}, Role::bias},           {{45, 129}, Role::matrix},  {{5}, Role::norm},        {{64, 24}, Role::head}};

// flat: one buffer for all parameters, back to back; else a tensor each.
Model make(bool flat, at::ScalarType type = at::kFloat) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  int64_t total = 0;
  for (const auto& [shape, role] : kLayout) total += c10::multiply_integers(shape);
  Model model{at::randn({total}, generator).to(type), at::zeros({total}), {}};
  int64_t offset = 0, i = 0;
  for (const auto& [shape, role] : kLayout) {
    const int64_t n = c10::multiply_integers(shape);
    at::Tensor p = model.weights.narrow(0, offset, n).view(shape), g = model.gradients.narrow(0, offset, n).view(shape);
    if (!flat) p = p.clone(), g = g.clone();
    model.parameters.push_back({fmt::format("p{}", i++), p, g, role});
    offset += n;
  }
  return model;
}

at::Tensor weights(const Model& model) {
  std::vector<at::Tensor> parts;
  for (const auto& p : model.parameters) parts.push_back(p.tensor.reshape({-1}).to(at::kFloat));
  return at::cat(parts);
}

void set_gradients(Model& model, int64_t step) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(100 + step);
  for (auto& p : model.parameters) p.grad.copy_(at::randn(p.grad.sizes(), generator) * 0.1);
}

at::Tensor train(Model& model, const OptimizerOptions& options, int64_t steps, int64_t first = 1) {
  auto optimizer = make_optimizer(options, model.parameters);
  optimizer->set_step(first - 1);
  for (int64_t step = first; step < first + steps; ++step) {
    set_gradients(model, step);
    optimizer->step(1e-2 / static_cast<double>(step), 0.7);
  }
  std::vector<at::Tensor> all = {weights(model)};
  for (auto& [name, tensor] : optimizer->state()) all.push_back(tensor.reshape({-1}).clone());
  return at::cat(all);
}

class Passes : public testing::TestWithParam<const char*> {
 protected:
  OptimizerOptions options() const {
    OptimizerOptions o = defaults(std::string(GetParam()).substr(0, std::string(GetParam()).find('_')));
    if (o.name == "sgd") o.weight_decay = 0.05;
    if (std::string(GetParam()) == "sgd_nesterov") o.momentum = 0.9, o.nesterov = true;
    return o;
  }
};
INSTANTIATE_TEST_SUITE_P(All, Passes, testing::Values("adamw", "sgd", "sgd_nesterov", "muon"));

TEST_P(Passes, EqualThePlainTwin) {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    Model fast = make(true, type), plain = make(true, type);
    OptimizerOptions o = options();
    const at::Tensor a = train(fast, o, 3);
    o.reference = true;
    const at::Tensor b = train(plain, o, 3);
    // float32: a few units in the last place of values below 8; bfloat16 parameters may round to a neighbour (2^-8 of
    // up to 4).
    const double tolerance = type == at::kFloat ? (o.name == "muon" ? 2e-5 : 2e-6) : 0.032;
    EXPECT_LT((a - b).abs().max().item<double>(), tolerance) << GetParam() << " " << c10::toString(type);
    EXPECT_GT((weights(fast) - weights(make(true, type))).abs().max().item<double>(), 1e-3);
  }
}

TEST_P(Passes, BitsDoNotDependOnThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  Model one = make(true);
  const at::Tensor expected = train(one, options(), 3);
  for (int threads : {2, 3, 4}) {
    at::set_num_threads(threads);
    Model other = make(true);
    EXPECT_TRUE(at::equal(train(other, options(), 3), expected)) << threads;
  }
  at::set_num_threads(before);
}

TEST_P(Passes, MergedRunsEqualSeparateTensors) {
  Model merged = make(true), separate = make(false);
  EXPECT_TRUE(at::equal(train(merged, options(), 3), train(separate, options(), 3)));
}

// Element-wise optimizers work on slices of parameters (ZeRO); muon needs whole matrices.
class Slices : public Passes {};
INSTANTIATE_TEST_SUITE_P(All, Slices, testing::Values("adamw", "sgd", "sgd_nesterov"));
TEST_P(Slices, ElementsCutAnywhereEqualTheWhole) {
  Model whole = make(true), cut = make(true);
  const at::Tensor expected = train(whole, options(), 1);
  OptimizerOptions o = options();
  std::vector<Parameter> halves;
  for (const auto& p : cut.parameters) {
    const int64_t n = p.tensor.numel(), at = n / 3;
    halves.push_back({p.name + ".a", p.tensor.view({-1}).narrow(0, 0, at), p.grad.view({-1}).narrow(0, 0, at), p.role});
    halves.push_back(
        {p.name + ".b", p.tensor.view({-1}).narrow(0, at, n - at), p.grad.view({-1}).narrow(0, at, n - at), p.role});
  }
  set_gradients(cut, 1);
  make_optimizer(o, halves)->step(1e-2, 0.7);
  EXPECT_TRUE(at::equal(weights(cut), expected.narrow(0, 0, weights(cut).numel())));
}

// The same bits on processors with and without AVX-512 (muon's products are MKL's, which chooses by itself).
TEST_P(Slices, BitsAreThoseOfAvx2) {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    Model widest = make(true, type), avx2 = make(true, type);
    const at::Tensor expected = train(widest, options(), 3);
    const double norm = gradient_norm(widest.gradients);
    hwy::SetSupportedTargetsForTest(HWY_AVX2);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    const at::Tensor found = train(avx2, options(), 3);
    const double found_norm = gradient_norm(avx2.gradients);
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    EXPECT_TRUE(at::equal(found, expected)) << GetParam();
    EXPECT_EQ(found_norm, norm);
  }
}

TEST_P(Passes, StateIsNamedLiveAndResumes) {
  Model straight = make(true), stopped = make(true);
  const at::Tensor expected = train(straight, options(), 4);
  auto first = make_optimizer(options(), stopped.parameters);
  for (int64_t step = 1; step <= 2; ++step) {
    set_gradients(stopped, step);
    first->step(1e-2 / static_cast<double>(step), 0.7);
  }
  auto second = make_optimizer(options(), stopped.parameters);
  second->set_step(first->steps_done());
  auto from = first->state(), to = second->state();
  ASSERT_EQ(from.size(), to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    EXPECT_EQ(from[i].first, to[i].first);
    EXPECT_GT(from[i].second.abs().max().item<float>(), 0.0f) << from[i].first;
    to[i].second.copy_(from[i].second);
  }
  for (int64_t step = 3; step <= 4; ++step) {
    set_gradients(stopped, step);
    second->step(1e-2 / static_cast<double>(step), 0.7);
  }
  EXPECT_TRUE(at::equal(weights(stopped), expected.narrow(0, 0, weights(stopped).numel())));
}

TEST_P(Passes, ClearsGradientsWhenAsked) {
  Model kept = make(true), cleared = make(true);
  OptimizerOptions o = options();
  set_gradients(kept, 1);
  set_gradients(cleared, 1);
  const at::Tensor before = kept.gradients.clone();
  make_optimizer(o, kept.parameters)->step(1e-2);
  EXPECT_TRUE(at::equal(kept.gradients, before));
  o.clear_grad = true;
  make_optimizer(o, cleared.parameters)->step(1e-2);
  EXPECT_EQ(cleared.gradients.abs().max().item<float>(), 0.0f);
  EXPECT_TRUE(at::equal(kept.weights, cleared.weights));
}

TEST(OptimizerNames, ErrorsNameTheKey) {
  const auto message = [](const OptimizerOptions& o, std::vector<Parameter> parameters = {}) -> std::string {
    try {
      make_optimizer(o, std::move(parameters));
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  OptimizerOptions o;
  o.name = "lion";
  EXPECT_EQ(message(o), "optim.name: unknown optimizer 'lion' (there are adamw, muon, sgd)");
  o = {};
  o.betas = {0.9, 1.0};
  EXPECT_EQ(message(o), "optim.betas: 1 is not in [0, 1)");
  o = {};
  o.decay_roles = {"matrices"};
  EXPECT_NE(message(o).find("unknown role 'matrices'"), std::string::npos);
  o = defaults("muon");
  EXPECT_NE(message(o, {{"w", at::zeros({4}), at::zeros({4}), Role::matrix}}).find("'w'"), std::string::npos);
  o = {};
  EXPECT_NE(message(o, {{"w", at::zeros({4}), at::zeros({5}), Role::norm}}).find("gradient of 'w'"), std::string::npos);
}

TEST(Norm, EqualsDoublePrecisionAndClipsAsTorchDoes) {
  for (int64_t n : {0, 1, 15, 16, 17, 4095, 4096, 4097, 100'000}) {
    const at::Tensor g = at::randn({n});
    const double expected = n > 0 ? g.to(at::kDouble).norm().item<double>() : 0.0;
    EXPECT_NEAR(gradient_norm(g), expected, 1e-12 * expected + 1e-300) << n;
  }
  EXPECT_EQ(clip_coefficient(4.0, 0.0), 1.0);
  EXPECT_EQ(clip_coefficient(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_coefficient(4.0, 1.0), 1.0 / (4.0 + 1e-6));
}

TEST(Norm, BitsDependNeitherOnThreadsNorOnShards) {
  const at::Tensor g = at::randn({50 * kPiece + 123});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const double expected = gradient_norm(g);
  at::set_num_threads(4);
  EXPECT_EQ(gradient_norm(g), expected);
  at::set_num_threads(before);
  std::vector<double> pieces(piece_count(g.numel()));
  for (auto [from, to] : {std::pair<int64_t, int64_t>{0, 7}, {7, 33}, {33, 51}}) {
    const int64_t begin = from * kPiece, end = std::min(to * kPiece, g.numel());
    squared_norm_pieces(g.narrow(0, begin, end - begin), pieces.data() + from);
  }
  EXPECT_EQ(std::sqrt(tree_sum(pieces.data(), pieces.size())), expected);
}

TEST(Norm, FindsWhatIsNotFinite) {
  for (float bad : {INFINITY, -INFINITY, NAN}) {
    at::Tensor g = at::randn({10'000});
    g[9'999] = bad;
    EXPECT_FALSE(std::isfinite(gradient_norm(g)));
  }
  EXPECT_TRUE(std::isfinite(gradient_norm(at::full({1000}, 3e38f))));
}

// The sums that a device without passes of its own takes.
TEST(GradientNorm, PiecesOfTheTwin) {
  for (int64_t n : {1, 4095, 4096, 4097, 40'000}) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(n);
    const at::Tensor g = at::randn({n}, generator), twin = kernels::ref::squared_norm_pieces(g, kPiece);
    std::vector<double> pieces(piece_count(n));
    squared_norm_pieces(g, pieces.data());
    ASSERT_EQ(twin.numel(), piece_count(n));
    for (int64_t k = 0; k < twin.numel(); ++k)
      EXPECT_NEAR(twin[k].item<double>(), pieces[k], 1e-12 * pieces[k]) << n << " piece " << k;
  }
}

TEST(Average, FollowsItsFormula) {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    Model model = make(true, type);
    Ema ema(0.9, model.parameters);
    at::Tensor expected = weights(model).to(at::kDouble);
    for (int i = 0; i < 20; ++i) {
      model.weights.add_(at::randn(model.weights.sizes()) * 0.1);
      ema.update();
      expected = 0.9 * expected + 0.1 * weights(model).to(at::kDouble);
    }
    std::vector<at::Tensor> parts;
    for (auto& [name, tensor] : ema.state()) parts.push_back(tensor.reshape({-1}));
    EXPECT_LT((at::cat(parts).to(at::kDouble) - expected).abs().max().item<double>(), 2e-6);
  }
  EXPECT_THROW(Ema(1.0, {}), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::optim
