// labels: quick
#include "models/kernels/cross_entropy.h"

#include <cstdlib>
#include <limits>

#include "models/kernels/ref/cross_entropy.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

// As the program runs: MKL's reproducible mode, asked for before the first product.
const bool kReproducible = setenv("MKL_CBWR", "AVX2,STRICT", 0) == 0;

struct Case {
  int64_t N, D, V;
  bool bias;
  double predicted;  // share of the rows
  CrossEntropyOptions options;
};

const Case kCases[] = {
    {1, 1, 1, false, 1, {}},
    {1, 8, 5, false, 1, {}},
    {8, 16, 37, true, 1, {}},
    {61, 24, 101, false, 1, {.scale = 0.25}},
    {100, 24, 129, true, 0.6, {.scale = 0.01, .z_loss = 0.1}},
    {64, 32, 300, false, 1, {.softcap = 3, .logit_scale = 0.7}},
    {77, 32, 300, true, 0.5, {.scale = 2, .softcap = 1.5, .logit_scale = 1.3, .z_loss = 0.01, .chunk_rows = 16}},
    {50, 16, 5003, false, 0.9, {.scale = 0.02, .z_loss = 1e-3, .chunk_rows = 24}},
    {24, 16, 4096, true, 1, {.logit_scale = 0.125, .chunk_rows = 8}},
    {9, 12, 2049, false, 0, {}},
};

struct Problem {
  at::Tensor hidden, weight, bias, targets;
};
Problem make(const Case& c) {
  Problem p;
  p.hidden = random_floats({c.N, c.D}, 1), p.weight = random_floats({c.V, c.D}, 2, 0.7);
  if (c.bias) p.bias = random_floats({c.V}, 3);
  p.targets = random_ids(c.N, 0, c.V, 4);
  const auto keep = random_ids(c.N, 0, 1000, 5) < c.predicted * 1000;
  p.targets = at::where(keep, p.targets, at::full_like(p.targets, -1));
  return p;
}

std::string name_of(const Case& c) {
  return "N " + std::to_string(c.N) + " V " + std::to_string(c.V) + (c.bias ? " bias" : "") + " softcap " +
         std::to_string(c.options.softcap) + " z " + std::to_string(c.options.z_loss);
}

TEST(CrossEntropy, EqualsItsTwin) {
  for (const Case& c : kCases) {
    const Problem p = make(c);
    auto dweight = at::ones({c.V, c.D}), dbias = c.bias ? at::ones({c.V}) : at::Tensor();
    const auto out = linear_cross_entropy(p.hidden, p.weight, p.bias, p.targets, c.options, true, dweight, dbias);
    auto wide = [](const at::Tensor& x) { return x.defined() ? x.to(at::kDouble) : x; };
    const auto expected = ref::linear_cross_entropy(wide(p.hidden), wide(p.weight), wide(p.bias), p.targets, c.options);
    EXPECT_NEAR(out.nll, expected.nll, 2e-6 * (1 + std::abs(expected.nll))) << name_of(c);
    EXPECT_NEAR(out.z, expected.z, 4e-6 * (1 + std::abs(expected.z))) << name_of(c);
    EXPECT_EQ(out.correct, expected.correct) << name_of(c);
    expect_close(out.row_nll, expected.row_nll, 2e-6, name_of(c) + " row_nll");

    auto twin = [&](const Tensors& in) {
      return Tensors{ref::linear_cross_entropy(in[0], in[1], c.bias ? in[2] : at::Tensor(), p.targets, c.options).loss};
    };
    Tensors inputs{p.hidden, p.weight}, gradients{out.dhidden, dweight - 1};
    if (c.bias) inputs.push_back(p.bias), gradients.push_back(dbias - 1);
    const auto one = at::ones({});
    const auto oracle = oracle_gradients(twin, inputs, {one});
    // Relative to the largest: the gradients carry `scale`. dweight - 1 has lost what adding to 1 rounds away.
    for (size_t i = 0; i < inputs.size(); ++i) {
      const double size = oracle[i].abs().max().item<double>(), lost = i > 0 ? 2e-7 : 0;
      expect_close(gradients[i] / (size + 1e-30), oracle[i] / (size + 1e-30), 4e-6 + lost / (size + 1e-30),
                   name_of(c) + " gradient " + std::to_string(i));
    }
    expect_finite_differences(twin, inputs, {one}, gradients, 2e-5, name_of(c));

    // Without gradients: the same numbers; nothing is written.
    const auto before = dweight.clone();
    const auto plain = linear_cross_entropy(p.hidden, p.weight, p.bias, p.targets, c.options, false, dweight, dbias);
    EXPECT_EQ(plain.nll, out.nll);
    EXPECT_EQ(plain.correct, out.correct);
    EXPECT_TRUE(same_bits(plain.row_nll, out.row_nll));
    EXPECT_FALSE(plain.dhidden.defined());
    EXPECT_TRUE(same_bits(dweight, before));
    // Frozen weights: the gradient of the hidden states alone.
    EXPECT_TRUE(same_bits(linear_cross_entropy(p.hidden, p.weight, p.bias, p.targets, c.options, true, {}, {}).dhidden,
                          out.dhidden));
  }
}

TEST(CrossEntropy, RowsWithoutTargetGetNothing) {
  const Problem p = make({40, 16, 50, false, 0.5, {}});
  const auto out = linear_cross_entropy(p.hidden, p.weight, {}, p.targets, {}, true, {}, {});
  const auto silent = p.targets.lt(0);
  ASSERT_GT(silent.sum().item<int64_t>(), 0);
  EXPECT_EQ(out.row_nll.masked_select(silent).abs().sum().item<float>(), 0);
  EXPECT_EQ(out.dhidden.index({silent}).abs().sum().item<float>(), 0);
  EXPECT_NEAR(out.nll, out.row_nll.to(at::kDouble).sum().item<double>(), 1e-4);
  // Not even a NaN in a row that is not predicted reaches the result.
  auto spoiled = p.hidden.clone();
  spoiled.index_put_({silent}, at::full({}, std::nan("")));
  const auto again = linear_cross_entropy(spoiled, p.weight, {}, p.targets, {}, true, {}, {});
  EXPECT_TRUE(same_bits(again.dhidden, out.dhidden));
}

// Equal logits: the first is the largest, as argmax says, wherever the blocks of a row begin.
TEST(CrossEntropy, TiesGoToTheFirst) {
  for (int64_t V : {5, 2048, 5000}) {
    const auto hidden = at::zeros({8, 4}), weight = at::zeros({V, 4});
    for (int64_t target : {int64_t{0}, int64_t{1}, V - 1}) {
      const auto out = linear_cross_entropy(hidden, weight, {}, at::full({8}, target, at::kInt), {}, false, {}, {});
      EXPECT_EQ(out.correct, target == 0 ? 8 : 0) << V << " " << target;
      EXPECT_NEAR(out.nll, 8 * std::log(static_cast<double>(V)), 1e-4);
    }
  }
}

TEST(CrossEntropy, ExtremeLogits) {
  // Logits of -1e4 and 1e4, and a masked vocabulary (-inf by the bias): finite results.
  const auto hidden = at::ones({8, 1}), targets = at::zeros({8}, at::kInt);
  auto weight = at::full({3000, 1}, -1e4);
  weight[0] = 1e4;
  const auto sharp = linear_cross_entropy(hidden, weight, {}, targets, {}, true, {}, {});
  EXPECT_EQ(sharp.nll, 0);
  EXPECT_EQ(sharp.correct, 8);
  EXPECT_EQ(sharp.dhidden.abs().max().item<float>(), 0);
  auto bias = at::zeros({5000});
  bias.narrow(0, 10, 4990).fill_(-std::numeric_limits<float>::infinity());
  const auto masked = linear_cross_entropy(hidden, at::zeros({5000, 1}), bias, targets, {}, true, {}, {});
  EXPECT_NEAR(masked.nll, 8 * std::log(10.0), 1e-5);
  EXPECT_TRUE(masked.dhidden.isfinite().all().item<bool>());
  // Logits spread over hundreds: no denormal gradient, which would slow the products down.
  auto dweight = at::zeros({6000, 8});
  linear_cross_entropy(at::eye(8), random_floats({6000, 8}, 1, 40), {}, targets, {.scale = 1e-6}, true, dweight, {});
  const auto size = dweight.abs();  // dlogits^T times the identity
  EXPECT_EQ((size.gt(0) & size.lt(1e-31)).sum().item<int64_t>(), 0);
  EXPECT_GT(size.eq(0).sum().item<int64_t>(), 0);
  // A NaN in the hidden states is reported as such.
  EXPECT_TRUE(std::isnan(linear_cross_entropy(hidden * std::nan(""), weight, {}, targets, {}, false, {}, {}).nll));
  EXPECT_TRUE(linear_cross_entropy(hidden * std::nan(""), weight, {}, targets, {}, true, {}, {})
                  .dhidden.isnan()
                  .all()
                  .item<bool>());
}

TEST(CrossEntropy, SameBitsEverywhere) {
  ASSERT_TRUE(kReproducible);
  for (const Case& c : {Case{203, 48, 1001, true, 0.8, {.scale = 0.3, .softcap = 5, .z_loss = 0.1, .chunk_rows = 64}},
                        Case{160, 64, 5003, false, 1, {}}}) {
    const Problem p = make(c);
    expect_same_bits_everywhere(
        [&] {
          auto dweight = at::ones({c.V, c.D}), dbias = c.bias ? at::ones({c.V}) : at::Tensor();
          const auto out = linear_cross_entropy(p.hidden, p.weight, p.bias, p.targets, c.options, true, dweight, dbias);
          return Tensors{at::tensor({out.nll, out.z, static_cast<double>(out.correct)}, at::kDouble), out.row_nll,
                         out.dhidden, dweight, dbias};
        },
        name_of(c));
  }
}

TEST(CrossEntropy, RefusesWhatItCannotUse) {
  const auto hidden = random_floats({4, 3}, 1), weight = random_floats({7, 3}, 2);
  const auto run = [&](const at::Tensor& targets, const CrossEntropyOptions& options = {}) {
    return message_of([&] { linear_cross_entropy(hidden, weight, {}, targets, options, false, {}, {}); });
  };
  EXPECT_NE(
      run(at::tensor({0, 1, 7, 2}, at::kInt)).find("targets[2] is 7, expected -1 or an id of the vocabulary of 7"),
      std::string::npos);
  EXPECT_NE(run(at::tensor({0, 1, -100, 2}, at::kInt)).find("targets[2] is -100"), std::string::npos);
  EXPECT_NE(run(at::zeros({4}, at::kLong)).find("targets: expected contiguous Int [4]"), std::string::npos);
  EXPECT_NE(run(at::zeros({4}, at::kInt), {.chunk_rows = 12}).find("chunk_rows: 12 is not a multiple of 8"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              linear_cross_entropy(hidden, weight.t(), {}, at::zeros({4}, at::kInt), {}, false, {}, {});
            }).find("weight"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
