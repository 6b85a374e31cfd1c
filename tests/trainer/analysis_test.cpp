// labels: quick
// The framework of the analysis on states of a few weights: selection, cache, parallel equals serial, refusals.
#include "trainer/analysis/analysis.h"

#include "tests/checkpoints/temporary.h"
#include "trainer/analysis/cache.h"

namespace cairn::analysis {
namespace {

using checkpoints::DType;
using checkpoints::message_of;
using checkpoints::TemporaryFolder;

// A model folder that holds one matrix [2, 2] and one vector [2], each filled from `values`.
Located make_state(const TemporaryFolder& folder, int64_t step, std::vector<float> values,
                   std::vector<int64_t> shape = {2, 2}) {
  const auto path = folder / ("step" + std::to_string(step));
  std::filesystem::create_directories(path);
  const checkpoints::TensorView views[] = {{"matrix", DType::F32, shape, values.data()},
                                           {"vector", DType::F32, {2}, values.data()}};
  checkpoints::write_safetensors(path / "model.safetensors", views);
  checkpoints::spill(path / "config.json", "{}");
  return {.address = path.string(), .folder = path, .step = step};
}

std::vector<Located> three_states(const TemporaryFolder& folder) {
  return {make_state(folder, 0, {3, 0, 0, 4}), make_state(folder, 10, {3, 0, 0, 5}),
          make_state(folder, 20, {6, 0, 0, 8})};
}

const std::vector<Measurement>& series(const Analysis& analysis, const std::string& name) {
  for (const auto& s : analysis.found)
    if (s.series == name) return s.values;
  throw std::runtime_error("no series " + name);
}

double value(const Analysis& analysis, const std::string& name, int64_t step, const std::string& tensor) {
  for (const Measurement& m : series(analysis, name))
    if (m.step == step && m.name == tensor) return m.values.at(0);
  throw std::runtime_error(name + " has nothing of " + tensor);
}

TEST(Analysis, MeasuresEveryStateAndRemembers) {
  const TemporaryFolder folder;
  const States states(three_states(folder), {}, false);
  const AnalyzeOptions options{.jobs = 1, .out = folder / "out"};
  const Analysis first = analyze(states, select_metrics({}), options);
  EXPECT_DOUBLE_EQ(value(first, "norm", 0, "matrix"), 5);
  EXPECT_DOUBLE_EQ(value(first, "norm", 20, ""), std::sqrt(100 + 36.0));
  EXPECT_DOUBLE_EQ(value(first, "relative_drift", 20, "matrix"), 1);
  EXPECT_DOUBLE_EQ(value(first, "change", 10, "matrix"), 1);
  EXPECT_DOUBLE_EQ(value(first, "change_direction", 20, "matrix"), 3 / std::sqrt(18.0));  // (0, 1) and (3, 3)
  EXPECT_NEAR(value(first, "stable_rank", 0, "matrix"), 25.0 / 16, 1e-12);
  EXPECT_EQ(first.cached, 0);
  EXPECT_EQ(first.measured, 3 * 5 + 2);  // change has no value at the first state

  const Analysis again = analyze(states, select_metrics({}), options);
  EXPECT_EQ(again.measured, 0);
  EXPECT_EQ(again.cached, first.measured);
  const Analysis parallel = analyze(states, select_metrics({}), {.jobs = 4, .out = folder / "other"});
  EXPECT_EQ(parallel.measured, first.measured);
  for (const auto& s : first.found) {
    for (const Analysis* other : {&again, &parallel}) {
      const auto& values = series(*other, s.series);
      ASSERT_EQ(values.size(), s.values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_EQ(values[i].name, s.values[i].name);
        for (size_t k = 0; k < values[i].values.size(); ++k) {
          const double expected = s.values[i].values[k], got = values[i].values[k];
          EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected))) << s.series;
        }
      }
    }
  }
  EXPECT_EQ(read_series(folder / "out", "norm").size(), 9u);
}

TEST(Analysis, ChangedWeightsAreMeasuredAnew) {
  const TemporaryFolder folder;
  auto located = three_states(folder);
  const auto norm = select_metrics({"norm"}),
             change = select_metrics({"relative_change"});  // a series stands for its metric
  const AnalyzeOptions options{.jobs = 1, .out = folder / "out"};
  analyze(States(located, {}, false), norm, options);
  make_state(folder, 10, {1, 0, 0, 0});
  const Analysis again = analyze(States(located, {}, false), norm, options);
  EXPECT_EQ(again.measured, 1);
  EXPECT_DOUBLE_EQ(value(again, "norm", 10, "matrix"), 1);
  // Beside other states a change is another one: nothing of the old series stays.
  analyze(States(located, {}, false), change, options);
  const Analysis two = analyze(States({located[0], located[2]}, {}, false), change, options);
  EXPECT_EQ(two.measured, 1);
  for (const Measurement& m : read_series(folder / "out", "change")) EXPECT_EQ(m.step, 20);
}

TEST(Analysis, ATornCacheIsNoObstacle) {
  const TemporaryFolder folder;
  Cache(folder.path).put("norm", "aaa", {number("norm", 2.5, "w"), array("norm", {2}, {1, std::nan("")}, "v")});
  std::string text = checkpoints::slurp(folder / "norm.jsonl");
  checkpoints::spill(folder / "norm.jsonl", text + text.substr(0, text.size() / 2));
  Cache(folder.path).put("norm", "bbb", {number("norm", 1)});
  Cache cache(folder.path);
  const auto found = cache.find("norm", "aaa");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->at(0).value.values, std::vector<double>{2.5});
  EXPECT_EQ(found->at(1).value.shape, std::vector<int64_t>{2});
  EXPECT_TRUE(std::isnan(found->at(1).value.values[1]));
  EXPECT_TRUE(cache.find("norm", "bbb"));
  EXPECT_FALSE(cache.find("norm", "ccc"));
}

TEST(Analysis, RefusesWithWords) {
  const TemporaryFolder folder;
  EXPECT_SAYS(message_of([&] { select_metrics({"spectra"}); }), "'spectra'", "did you mean 'spectrum'", "norm");
  EXPECT_SAYS(message_of([&] { States({}, {}, false); }), "empty");
  auto located = three_states(folder);
  located.push_back(make_state(folder, 30, {1, 2, 3, 4}, {4, 1}));
  EXPECT_SAYS(message_of([&] { States(located, {}, false); }), "step30", "matrix", "[4, 1]", "[2, 2]", "step0");
  located.pop_back();
  located.push_back(located[0]);
  EXPECT_SAYS(message_of([&] { States(located, {}, false); }), "step 0", "one state a step");
  located.pop_back();
  const AnalyzeOptions options{.jobs = 2, .out = folder / "out"};
  const States states(located, {.thresholds = {}}, false);
  EXPECT_SAYS(message_of([&] { analyze(states, select_metrics({"sparsity"}), options); }), "sparsity", "thresholds");
  EXPECT_SAYS(message_of([&] { analyze(states, select_metrics({"memorised"}), options); }), "memorised",
              "training text");
  EXPECT_SAYS(message_of([&] { analyze(states, select_metrics({"expert_load"}), options); }), "no experts");
  make_state(folder, 10, {1, std::numeric_limits<float>::infinity(), 0, 0});
  EXPECT_SAYS(message_of([&] { analyze(states, select_metrics({"spectrum"}), options); }), "spectrum", "step10",
              "matrix", "not finite");
}

}  // namespace
}  // namespace cairn::analysis
