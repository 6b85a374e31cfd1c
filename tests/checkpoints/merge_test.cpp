// labels: quick
// Merges against closed forms on tensors of a few elements; what does not fit is refused by name.
#include "checkpoints/analysis/merge.h"

#include <cmath>

#include "checkpoints/analysis/elements.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

using Numbers = std::vector<double>;

// Models of one tensor "w" of type F64, [n].
struct Models {
  TemporaryFolder folder;
  std::vector<MergeInput> inputs;

  void add(const Numbers& values, const std::string& tensor = "w", std::vector<int64_t> shape = {}) {
    if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
    const std::vector<int64_t> mask = {1, 2};
    const TensorView views[] = {{tensor, DType::F64, shape, values.data()}, {"mask", DType::I64, {2}, mask.data()}};
    const auto path = folder / (std::to_string(inputs.size()) + ".safetensors");
    write_safetensors(path, views);
    inputs.push_back({"model " + std::to_string(inputs.size()), ModelWeights::open(path)});
  }

  // The last of the inputs is the base where `with_base`.
  Numbers merged(MergeSettings settings, bool with_base = false, std::optional<DType> dtype = {}) {
    const std::span<const MergeInput> all(inputs);
    const MergedWeights result = merge(settings, with_base ? all.first(all.size() - 1) : all,
                                       with_base ? &inputs.back() : nullptr, dtype, folder.path);
    EXPECT_EQ(result.views().size(), 2u);
    for (const TensorView& view : result.views()) {
      if (view.name == "mask") {
        EXPECT_EQ(static_cast<const int64_t*>(view.data)[1], 2);
      }
      if (view.name != "w") continue;
      Numbers values(view.numel());
      read_elements(view, 0, values);
      return values;
    }
    return {};
  }
};

void expect_near(const Numbers& found, const Numbers& expected, double tolerance = 1e-14) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], tolerance) << i;
}

Models trail() {
  Models m;
  m.add({1, 0, -4});
  m.add({2, 1, 0});
  m.add({4, 0, 8});
  m.add({8, 1, -2});
  return m;
}

TEST(Merge, LinearCombinations) {
  Models m = trail();
  expect_near(m.merged({}), {15.0 / 4, 0.5, 0.5});
  expect_near(m.merged({.method = "weighted", .weights = {1, 0, 0, 3}}), {25.0 / 4, 0.75, -2.5});
  expect_near(m.merged({.method = "weighted", .weights = {1, 0, 0, 3}, .normalize = false}), {25, 3, -10});
  expect_near(m.merged({.method = "lawa", .last = 2}), {6, 0.5, 3});
  // e1 = m1, e_k = d e_(k-1) + (1 - d) m_k, written out.
  Numbers e = {1, 0, -4};
  for (const Numbers& next : {Numbers{2, 1, 0}, Numbers{4, 0, 8}, Numbers{8, 1, -2}})
    for (size_t i = 0; i < 3; ++i) e[i] = 0.7 * e[i] + 0.3 * next[i];
  expect_near(m.merged({.method = "ema", .decay = 0.7}), e);
}

TEST(Merge, WsmScalesEachUpdateByTheSchedule) {
  Models m = trail();
  const Numbers states[] = {{1, 0, -4}, {2, 1, 0}, {4, 0, 8}, {8, 1, -2}};
  const std::pair<const char*, double (*)(double)> schedules[] = {
      {"linear", [](double x) { return 1 - x; }},
      {"cosine", [](double x) { return 0.5 + 0.5 * std::cos(M_PI * x); }},
      {"1-sqrt", [](double x) { return 1 - std::sqrt(x); }}};
  for (const auto& [name, w] : schedules) {
    Numbers expected = states[0];  // state 0 + sum of w_i (state i - state i-1)
    for (int i = 1; i < 4; ++i)
      for (int j = 0; j < 3; ++j) expected[j] += w(i / 4.0) * (states[i][j] - states[i - 1][j]);
    expect_near(m.merged({.method = "wsm", .schedule = name}), expected);
  }
  expect_near(m.merged({.method = "wsm"}), m.merged({}));  // linear is the mean
  expect_near(m.merged({.method = "wsm", .last = 3}), m.merged({.method = "lawa", .last = 3}));
}

TEST(Merge, SlerpOnTheCircle) {
  Models m;
  m.add({1, 0});
  m.add({0, 1});
  expect_near(m.merged({.method = "slerp", .t = 1.0 / 3}), {std::cos(M_PI / 6), std::sin(M_PI / 6)});
  expect_near(m.merged({.method = "slerp", .t = 0}), {1, 0});
  expect_near(m.merged({.method = "slerp", .t = 1}), {0, 1});
  Models parallel;
  parallel.add({1, 2});
  parallel.add({3, 6});
  expect_near(parallel.merged({.method = "slerp", .t = 0.25}), {1.5, 3});  // linear
  Models zero;
  zero.add({0, 0});
  zero.add({2, 4});
  expect_near(zero.merged({.method = "slerp", .t = 0.5}), {std::sqrt(2.0), 2 * std::sqrt(2.0)});  // sin(pi/4) b
}

TEST(Merge, TaskVectors) {
  Models m;
  m.add({11, 9, 10, 14});
  m.add({10, 7, 13, 12});
  m.add({10, 10, 10, 10});  // base: differences {1 -1 0 4}, {0 -3 3 2}
  expect_near(m.merged({.method = "task_arithmetic"}, true), {11, 6, 13, 16});
  expect_near(m.merged({.method = "task_arithmetic", .weights = {1, 3}, .normalize = true, .lambda = 2}, true),
              {10.5, 5, 14.5, 15});
  // Half of each: {. . . 4} and {1 or -1: the first of equal ones}: {1 . . 4}, {. -3 3 .}.
  expect_near(m.merged({.method = "ties", .density = 0.5}, true), {11, 7, 13, 14});
  // All of each; the signs agree everywhere but nowhere against: {1, -4/2, 3, 6/2}.
  expect_near(m.merged({.method = "ties", .density = 1, .lambda = 0.5}, true), {10.5, 9, 11.5, 11.5});

  Models opposed;
  opposed.add({3, -1});
  opposed.add({-1, 2});
  opposed.add({-1, 2});
  opposed.add({0, 0});
  // Sums {1, 3}: positive signs are elected; means of those that agree.
  expect_near(opposed.merged({.method = "ties", .density = 1}, true), {3, 2});
  // With weight 4 on the second the first column turns negative.
  expect_near(opposed.merged({.method = "ties", .weights = {1, 4, 1}, .density = 1}, true), {-1, 2});
}

TEST(Merge, DareKeepsTheExpectation) {
  constexpr size_t n = 20000;
  Models m;
  m.add(Numbers(n, 3.0));
  m.add(Numbers(n, -1.0));
  m.add(Numbers(n, 1.0));
  const Numbers merged = m.merged({.method = "dare", .density = 0.25, .seed = 5}, true);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const double expected =
        1 + (dare_uniform(5, 0, "w", i) < 0.25 ? 4 * 2.0 : 0) + (dare_uniform(5, 1, "w", i) < 0.25 ? 4 * -2.0 : 0);
    ASSERT_DOUBLE_EQ(merged[i], expected) << i;
    sum += merged[i] - 1;
  }
  // Mean 0, deviation of the mean sqrt(2 * 4 * 3 / n) = 0.035.
  EXPECT_LT(std::abs(sum / n), 0.14);
  EXPECT_NE(m.merged({.method = "dare", .density = 0.25, .seed = 6}, true), merged);
  expect_near(m.merged({.method = "dare", .density = 1}, true), Numbers(n, 1.0));
  // Elected signs: where both are kept they cancel to 0, which counts as positive.
  const Numbers ties = m.merged({.method = "dare_ties", .density = 0.25, .seed = 5}, true);
  for (size_t i = 0; i < n; ++i) {
    const bool first = dare_uniform(5, 0, "w", i) < 0.25, second = dare_uniform(5, 1, "w", i) < 0.25;
    ASSERT_DOUBLE_EQ(ties[i], first ? 9 : second ? -7 : 1) << i;
  }
}

TEST(Merge, TypesOfTheResult) {
  Models m;
  m.add({1.0 / 3, 65519.9, 1e-7, 5.9e-8});
  const Numbers third = m.merged({}, false, DType::BF16);
  EXPECT_EQ(third[0], 0.333984375);
  EXPECT_EQ(m.merged({}, false, DType::F16)[1], 65504);
  EXPECT_EQ(m.merged({}, false, DType::F16)[2], 2 * 0x1p-24);
  EXPECT_EQ(m.merged({}, false, DType::F16)[3], 0x1p-24);
  EXPECT_EQ(m.merged({}, false, DType::F32)[0], static_cast<double>(1.0f / 3));
}

TEST(Merge, HalfTypesRoundTripEveryPattern) {
  for (const DType type : {DType::F16, DType::BF16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const auto stored = static_cast<uint16_t>(bits);
      double value;
      read_elements({"x", type, {1}, &stored}, 0, {&value, 1});
      uint16_t again = 0;
      write_elements({&value, 1}, type, &again);
      if (std::isnan(value)) continue;
      ASSERT_EQ(again, stored) << dtype_name(type);
      // Halfway to the next number: to even; a little beyond: up.
      const uint16_t next = stored + 1;
      double above;
      read_elements({"x", type, {1}, &next}, 0, {&above, 1});
      if (std::isinf(value) || !std::isfinite(above) || (stored & 0x7fff) == 0x7fff) continue;
      double middle = (value + above) / 2;
      write_elements({&middle, 1}, type, &again);
      ASSERT_EQ(again, stored & 1 ? next : stored) << dtype_name(type) << " " << value;
    }
  }
}

TEST(Merge, RefusesWithWords) {
  Models m = trail();
  const auto says = [&](MergeSettings s, bool base = false) { return message_of([&] { m.merged(s, base); }); };
  EXPECT_SAYS(says({.method = "mean"}), "'mean'", "uniform", "dare");
  EXPECT_SAYS(says({.density = 0.5}), "density", "uniform", "no options");
  EXPECT_SAYS(says({.method = "ema", .decay = 1}), "decay", "found 1", "below 1");
  EXPECT_SAYS(says({.method = "lawa", .last = 5}), "last", "found 5", "(4)");
  EXPECT_SAYS(says({.method = "slerp"}), "slerp", "found 4", "exactly 2");
  EXPECT_SAYS(says({.method = "ties"}), "base", "ties");
  EXPECT_SAYS(says({}, true), "base", "uniform");
  EXPECT_SAYS(says({.method = "ties", .density = 0}, true), "density", "found 0");
  EXPECT_SAYS(says({.method = "weighted", .weights = {1, 2}}), "weights", "2 for 4");
  EXPECT_SAYS(says({.method = "weighted"}), "weights");
  EXPECT_SAYS(says({.method = "weighted", .weights = {1, -1, 0, 0}}), "sum is 0");
  EXPECT_SAYS(says({.method = "wsm", .schedule = "sqrt"}), "schedule", "'sqrt'", "1-sqrt");
  m.add({1, 2, 3}, "v");
  EXPECT_SAYS(says({}), "model 4", "model 0", "lacks w", "alone has v");
  Models shapes;
  shapes.add({1, 2});
  shapes.add({1, 2}, "w", {2, 1});
  EXPECT_SAYS(message_of([&] { shapes.merged({}); }), "model 1", "w", "[2, 1]", "[2]");
}

}  // namespace
}  // namespace cairn::checkpoints
