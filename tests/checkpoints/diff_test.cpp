// labels: quick
// Statistics of weights, differences of models, spectra: against numbers worked out by hand.
#include "checkpoints/analysis/diff.h"

#include <cmath>
#include <random>

#include "checkpoints/analysis/elements.h"
#include "checkpoints/analysis/spectrum.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

using Numbers = std::vector<double>;

TensorView view_of(const Numbers& values, const std::string& name = "w") {
  return {name, DType::F64, {static_cast<int64_t>(values.size())}, values.data()};
}

TEST(WeightStatistics, OfAFewNumbers) {
  const Numbers w = {3, -4, 0, 0}, thresholds = {0, 3, 10};
  const WeightStatistics s = weight_statistics(view_of(w), thresholds);
  EXPECT_EQ(s.count, 4);
  EXPECT_DOUBLE_EQ(s.norm, 5);
  EXPECT_DOUBLE_EQ(s.rms, 2.5);
  EXPECT_DOUBLE_EQ(s.mean, -0.25);
  EXPECT_DOUBLE_EQ(s.max_abs, 4);
  EXPECT_DOUBLE_EQ(s.max_over_rms, 1.6);
  EXPECT_EQ(s.below, (Numbers{0.5, 0.75, 1}));
  double second = 0, fourth = 0;
  for (const double x : w) second += std::pow(x + 0.25, 2) / 4, fourth += std::pow(x + 0.25, 4) / 4;
  EXPECT_DOUBLE_EQ(s.kurtosis, fourth / (second * second));
  EXPECT_DOUBLE_EQ(s.beyond_6sigma, 0);
}

TEST(WeightStatistics, OutliersOverManyBlocks) {
  Numbers w(10000, 0.0);
  for (size_t i = 0; i < w.size(); ++i) w[i] = i % 2 ? 1 : -1;
  EXPECT_DOUBLE_EQ(weight_statistics(view_of(w)).kurtosis, 1);  // two values: the least there is
  w[4096] = 50;
  w[9999] = -50;
  const WeightStatistics s = weight_statistics(view_of(w));
  EXPECT_DOUBLE_EQ(s.beyond_6sigma, 2e-4);
  EXPECT_GT(s.kurtosis, 100);
  const Numbers zeros(3, 0.0);
  EXPECT_TRUE(std::isnan(weight_statistics(view_of(zeros)).kurtosis));
  EXPECT_EQ(weight_statistics(view_of(zeros)).max_over_rms, 0);
}

TEST(PairStatistics, CosineAndRelativeChange) {
  const Numbers a = {3, 0, 4, 0}, b = {3, 5, 4, 0};
  const PairStatistics s = pair_statistics(view_of(a), view_of(b));
  EXPECT_DOUBLE_EQ(s.relative(), 1);
  EXPECT_DOUBLE_EQ(s.cosine(), std::sqrt(0.5));
  EXPECT_DOUBLE_EQ(s.max_abs, 5);
  EXPECT_EQ(s.differing, 1);
  const Numbers zero(4, 0.0);
  EXPECT_TRUE(std::isinf(pair_statistics(view_of(zero), view_of(b)).relative()));
  EXPECT_EQ(pair_statistics(view_of(zero), view_of(zero)).relative(), 0);
  EXPECT_TRUE(std::isnan(pair_statistics(view_of(zero), view_of(b)).cosine()));
  const Numbers c = {3.001, 0, 4, 0};
  EXPECT_EQ(pair_statistics(view_of(a), view_of(c), DType::BF16).differing, 0) << "rounded before";
  const DirectionStatistics d = direction_statistics(view_of(a), view_of(b), view_of(a));
  EXPECT_DOUBLE_EQ(d.cosine(), -1);  // there and back
  const Numbers other(3, 1.0);
  EXPECT_SAYS(message_of([&] { pair_statistics(view_of(a), view_of(other)); }), "'w'", "[4]", "[3]");
}

TEST(Spectrum, RanksOfKnownMatrices) {
  EXPECT_NEAR(effective_rank(Numbers{2, 2, 2, 2}), 4, 1e-12);
  EXPECT_NEAR(effective_rank(Numbers{5, 0, 0}), 1, 1e-12);
  EXPECT_NEAR(effective_rank(Numbers{3, 1}), std::exp(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)), 1e-12);
  EXPECT_EQ(effective_rank(Numbers{0, 0}), 0);
  EXPECT_DOUBLE_EQ(stable_rank(Numbers{2, 1, 1}), 1.5);
  EXPECT_EQ(stable_rank(Numbers{0}), 0);
}

TEST(Spectrum, PowerLawFindsItsExponentAndWhereItBegins) {
  // Quantiles of a density x^-2.5 from 1 on, below them numbers that follow no such law.
  Numbers x;
  for (int i = 0; i < 2000; ++i) x.push_back(std::pow(1 - (i + 0.5) / 2000, -1 / 1.5));
  for (int i = 0; i < 500; ++i) x.push_back(0.5 + 0.4 * i / 500);
  const PowerLaw law = fit_power_law(x);
  EXPECT_NEAR(law.alpha, 2.5, 0.02);
  EXPECT_NEAR(law.xmin, 1, 0.1);
  EXPECT_LT(law.distance, 0.01);
  EXPECT_NEAR(law.tail, 2000, 100);
  // Two values: xmin is the smaller, alpha = 1 + 2 / ln 4.
  EXPECT_DOUBLE_EQ(fit_power_law({4, 1, 0, -3}).alpha, 1 + 2 / std::log(4.0));
  EXPECT_TRUE(std::isnan(fit_power_law({2, 2, 2}).alpha));
  EXPECT_TRUE(std::isnan(fit_power_law({}).alpha));
}

struct Pair {
  TemporaryFolder folder;
  ModelWeights write(const std::string& name, std::vector<TensorView> views) {
    write_safetensors(folder / name, views);
    return ModelWeights::open(folder / name);
  }
};

TEST(Diff, NamesEveryKindOfDifference) {
  Pair files;
  const Numbers one = {1, 2}, two = {1, 3}, far = {9, 9}, negative = {-0.0, 1}, zero = {0.0, 1};
  const std::vector<float> half = {1, 2};
  const std::vector<int64_t> mask = {1, 0}, other_mask = {1, 1};
  const auto with = [](const char* name, const void* data, DType type = DType::F64, std::vector<int64_t> shape = {2}) {
    return TensorView{name, type, shape, data};
  };
  const auto a =
      files.write("a.safetensors", {with("same", one.data()), with("little", one.data()), with("much", one.data()),
                                    with("cast", one.data()), with("turned", one.data()), with("gone", one.data()),
                                    with("mask", mask.data(), DType::I64), with("sign", negative.data())});
  const auto b = files.write("b.safetensors", {with("same", one.data()), with("little", two.data()),
                                               with("much", far.data()), with("cast", half.data(), DType::F32),
                                               with("turned", one.data(), DType::F64, {2, 1}), with("new", one.data()),
                                               with("mask", other_mask.data(), DType::I64), with("sign", zero.data())});
  const ModelDifference d = compare(a, b);
  std::vector<std::string> order;
  for (const auto& t : d.tensors) order.push_back(t.name + ": " + difference_name(t.difference));
  EXPECT_EQ(order,
            (std::vector<std::string>{"gone: only in A", "mask: values", "new: only in B", "turned: shape",
                                      "much: values", "little: values", "cast: dtype", "same: none", "sign: none"}));
  EXPECT_FALSE(d.identical());
  EXPECT_EQ(d.changed, 3);
  EXPECT_EQ(d.total.count, 10);  // same, little, much, cast, sign
  EXPECT_DOUBLE_EQ(d.total.norm_difference(), std::sqrt(1 + 64 + 49.0));
  EXPECT_TRUE(compare(a, a).identical());
}

}  // namespace
}  // namespace cairn::checkpoints
