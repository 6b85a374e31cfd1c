// labels: quick
// Series of measurements: both files hold the same, a later value replaces an earlier one, faults are named.
#include <thread>

#include <fstream>

#include "checkpoints/hdf5.h"
#include "tests/checkpoints/temporary.h"
#include "trainer/metrics/series.h"

namespace cairn {
namespace {

using checkpoints::message_of;
using checkpoints::TemporaryFolder;

std::vector<Measurement> some() {
  return {{10, "", {}, {1.5}},
          {10, "layer.0", {2, 2}, {1, 2, 3, 0.1}},
          {20, "", {}, {2.5}},
          {20, "layer.0", {2, 2}, {5, 6, 7, 8}}};
}

TEST(Series, ReadsWhatItWrote) {
  const TemporaryFolder folder;
  EXPECT_TRUE(read_series(folder.path, "norm").empty());
  write_series(folder.path, "norm", some());
  const auto read = read_series(folder.path, "norm");
  ASSERT_EQ(read.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(read[i].step, some()[i].step);
    EXPECT_EQ(read[i].name, some()[i].name);
    EXPECT_EQ(read[i].shape, some()[i].shape);
    EXPECT_EQ(read[i].values, some()[i].values);
  }
  const auto file = checkpoints::hdf5::File::open(folder / "norm.h5");
  EXPECT_EQ(file.string_attribute("/", "metric"), "norm");
  EXPECT_EQ(file.read<int64_t>("steps/model"), (std::vector<int64_t>{10, 20}));
  EXPECT_EQ(file.read<double>("values/model"), (std::vector<double>{1.5, 2.5}));
  EXPECT_EQ(file.shape("values/layer.0"), (std::vector<int64_t>{2, 2, 2}));
  EXPECT_EQ(file.read<double>("values/layer.0"), (std::vector<double>{1, 2, 3, 0.1, 5, 6, 7, 8}));
}

TEST(Series, WritersOfOneFolderLoseNothing) {
  const TemporaryFolder folder;
  constexpr int64_t kWriters = 4, kSteps = 12;
  std::vector<std::thread> writers;
  for (int64_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      for (int64_t k = 0; k < kSteps; ++k) {
        const Measurement m{k * kWriters + w, "", {}, {static_cast<double>(w)}};
        write_series(folder.path, "norm", std::span(&m, 1));
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const auto read = read_series(folder.path, "norm");
  ASSERT_EQ(read.size(), static_cast<size_t>(kWriters * kSteps));
  for (size_t i = 0; i < read.size(); ++i) EXPECT_EQ(read[i].step, static_cast<int64_t>(i));
  const auto file = checkpoints::hdf5::File::open(folder / "norm.h5");
  EXPECT_EQ(file.read<int64_t>("steps/model").size(), read.size());
}

TEST(Series, LaterValuesReplaceAndStepsAscend) {
  const TemporaryFolder folder;
  write_series(folder.path, "norm", some());
  const std::vector<Measurement> more = {{20, "", {}, {-1}}, {5, "", {}, {0.5}}};
  write_series(folder.path, "norm", more);
  std::vector<int64_t> steps;
  std::vector<double> values;
  for (const auto& m : read_series(folder.path, "norm")) {
    if (!m.name.empty()) continue;
    steps.push_back(m.step);
    values.push_back(m.values.at(0));
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 10, 20}));
  EXPECT_EQ(values, (std::vector<double>{0.5, 1.5, -1}));
  EXPECT_EQ(checkpoints::hdf5::File::open(folder / "norm.h5").read<double>("values/model"), values);
}

TEST(Series, ARunThatGoesBackLosesWhatLiesBehind) {
  const TemporaryFolder folder;
  write_series(folder.path, "norm", some());
  write_series(folder.path, "late", std::vector<Measurement>{{20, "", {}, {1}}});
  write_series(folder.path, "early", std::vector<Measurement>{{3, "", {}, {1}}});
  std::ofstream(folder / "torn.jsonl") << "{\"step\": 20";
  const auto faults = cut_series(folder.path, 10);
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_NE(faults[0].find("torn.jsonl:1"), std::string::npos) << faults[0];
  EXPECT_EQ(read_series(folder.path, "norm").back().step, 10);
  EXPECT_EQ(read_series(folder.path, "early").size(), 1u);
  EXPECT_EQ(checkpoints::hdf5::File::open(folder / "norm.h5").read<int64_t>("steps/model"), std::vector<int64_t>{10});
  for (const char* name : {"late.jsonl", "late.h5"}) EXPECT_FALSE(std::filesystem::exists(folder / name)) << name;
  EXPECT_TRUE(std::filesystem::exists(folder / "torn.jsonl"));
  EXPECT_TRUE(cut_series(folder / "none", 10).empty());
}

TEST(Series, WhatIsNoNumberIsNanInBoth) {
  const TemporaryFolder folder;
  const std::vector<Measurement> odd = {{1, "a", {2}, {std::nan(""), std::numeric_limits<double>::infinity()}}};
  write_series(folder.path, "odd", odd);
  const auto series = read_series(folder.path, "odd");
  const auto stored = checkpoints::hdf5::File::open(folder / "odd.h5").read<double>("values/a");
  ASSERT_EQ(stored.size(), 2u);
  for (const double value : series.at(0).values) EXPECT_TRUE(std::isnan(value));
  for (const double value : stored) EXPECT_TRUE(std::isnan(value));
  EXPECT_EQ(checkpoints::slurp(folder / "odd.jsonl"), "{\"step\":1,\"name\":\"a\",\"value\":[null,null]}\n");
}

TEST(Series, FaultsAreNamed) {
  const TemporaryFolder folder;
  const auto write = [&](Measurement m) { write_series(folder.path, "m", std::span(&m, 1)); };
  EXPECT_SAYS(message_of([&] { write({3, "a/b", {}, {1}}); }), "m", "step 3", "a/b");
  EXPECT_SAYS(message_of([&] { write({3, "a", {2}, {1}}); }), "1 values", "expected 2");
  EXPECT_SAYS(message_of([&] { write({3, "a", {0}, {}}); }), "without elements");
  write({3, "a", {2}, {1, 2}});
  EXPECT_SAYS(message_of([&] { write({4, "a", {3}, {1, 2, 3}}); }), "m.h5", "'a'", "[2]", "[3]", "step 4");
  EXPECT_EQ(read_series(folder.path, "m").size(), 1u) << "a refused write changes nothing";
  for (const auto& [line, word] : std::vector<std::pair<std::string, std::string>>{
           {"{\"step\":1,\"name\":\"a\",\"value\":[1,[2]]}", "one shape"},
           {"{\"step\":1,\"name\":\"a\",\"value\":[[1],[2,3]]}", "one shape"},
           {"{\"step\":1}", "'name'"},
           {"nonsense", "parse"},
           {"{\"step\":1,\"name\":\"a\",\"value\":\"x\"}", "string"}}) {
    checkpoints::spill(folder / "bad.jsonl", "{\"step\":0,\"name\":\"a\",\"value\":1}\n" + line + "\n");
    EXPECT_SAYS(message_of([&] { read_series(folder.path, "bad"); }), "bad.jsonl:2", word);
  }
}

}  // namespace
}  // namespace cairn
