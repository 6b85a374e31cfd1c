// labels: quick
// The data order as arithmetic: permutations, mixtures, stages.
#include "trainer/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "trainer/data/mixture.h"
#include "trainer/data/permutation.h"

namespace cairn::data {
namespace {

TEST(Permutation, IsABijectionWithItsInverse) {
  std::vector<int64_t> sizes(300);
  std::iota(sizes.begin(), sizes.end(), 1);
  for (const int64_t n : {511, 512, 513, 1000, 4095, 4097, 9999, 10000, 10001, 65536}) sizes.push_back(n);
  for (const int64_t n : sizes) {
    const Permutation p(42, "web", 3, n);
    std::vector<bool> seen(n, false);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t v = p(i);
      ASSERT_TRUE(v >= 0 && v < n) << n;
      ASSERT_FALSE(seen[v]) << n;
      seen[v] = true;
      ASSERT_EQ(p.inverse(v), i) << n;
    }
  }
}

TEST(Permutation, DependsOnSeedNameAndEpoch) {
  const int64_t n = 1000;
  const Permutation base(1, "a", 0, n);
  for (const Permutation& other : {Permutation(2, "a", 0, n), Permutation(1, "b", 0, n), Permutation(1, "a", 1, n)}) {
    int64_t equal = 0;
    for (int64_t i = 0; i < n; ++i) equal += base(i) == other(i);
    EXPECT_LT(equal, 10);  // one expected of a random pair
  }
}

// Every value is equally likely at every place, also for sizes with few bits: chi-squared over many seeds.
TEST(Permutation, IsUniformOverSeeds) {
  for (const int64_t n : {2, 3, 5, 7, 12, 30}) {
    const int64_t trials = 6000;
    std::vector<double> counts(n * n, 0);
    for (int64_t seed = 0; seed < trials; ++seed) {
      const Permutation p(seed, "s", 0, n);
      for (int64_t i = 0; i < n; ++i) ++counts[i * n + p(i)];
    }
    double chi = 0;
    const double expected = static_cast<double>(trials) / n;
    for (const double c : counts) chi += (c - expected) * (c - expected) / expected;
    const double freedom = (n - 1) * (n - 1);
    EXPECT_LT(chi, freedom + 6 * std::sqrt(2 * freedom) + 6) << n;
  }
}

TEST(Permutation, NeighboursAreIndependent) {
  const int64_t n = 20000;
  const Permutation p(7, "web", 0, n);
  double product = 0, square = 0;
  for (int64_t i = 0; i + 1 < n; ++i) {
    const double x = static_cast<double>(p(i)) / n - 0.5, y = static_cast<double>(p(i + 1)) / n - 0.5;
    product += x * y;
    square += x * x;
  }
  EXPECT_LT(std::abs(product / square), 0.035);  // 5 sigma
}

TEST(Permutation, HugeSizesCostTheSameAsSmallOnes) {
  const Permutation p(1, "web", 0, (int64_t{1} << 61) + 12345);
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(p.inverse(p(i * 1000003)), i * 1000003);
  EXPECT_THROW(p(-1), std::out_of_range);
  EXPECT_THROW(p.inverse(p.size()), std::out_of_range);
  const auto seconds = [](int64_t n) {
    double best = 1;
    for (int attempt = 0; attempt < 3; ++attempt) {
      const auto start = std::chrono::steady_clock::now();
      int64_t sum = 0;
      for (int64_t i = 0; i < 2000; ++i) sum += Permutation(1, "web", 0, n)(i);
      EXPECT_GT(sum, 0);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
  };
  EXPECT_LT(seconds(int64_t{1} << 40), 20 * seconds(3000));
}

void expect_close_and_consistent(const std::vector<double>& weights, int64_t draws) {
  const Mixture mixture(weights);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<int64_t> counts(weights.size(), 0);
  for (int64_t n = 0; n < draws; ++n) {
    const auto place = mixture.at(n);
    ASSERT_EQ(place.index, counts[place.source]++);  // monotone: the next of its source, never a gap
    ASSERT_EQ(mixture.draw_of(place.source, place.index), n);
    for (size_t s = 0; s < weights.size(); ++s) {
      // 1e-6 per draw would be the rounding of weights; within one of the weights as used always.
      ASSERT_LT(std::abs(counts[s] - (n + 1) * mixture.weight(s)), 1.0) << "draw " << n << " source " << s;
      ASSERT_LT(std::abs(mixture.weight(s) - weights[s] / sum), 1.0 / (1 << 18));
      if (n % 97 == 0) {
        ASSERT_EQ(mixture.count(s, n + 1), counts[s]);
      }
    }
  }
}

TEST(Mixture, StaysWithinOneOfTheWeights) {
  expect_close_and_consistent({1}, 100);
  expect_close_and_consistent({1, 1}, 1000);
  expect_close_and_consistent({0.7, 0.2, 0.1}, 5000);
  expect_close_and_consistent({3, 5, 7, 11}, 5000);
  expect_close_and_consistent({1000, 1}, 5000);
  expect_close_and_consistent({1, 1, 2, 3, 5, 8, 13, 21, 34, 55}, 5000);  // a skewed tree of splits would miss this
  expect_close_and_consistent({M_PI, M_E, M_SQRT2, 1e-7}, 300000);        // rounded weights, beyond a period
  std::mt19937 random(5);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<double> weights(2 + trial % 7);
    for (auto& w : weights) w = 1 + random() % 40;
    expect_close_and_consistent(weights, 3000);
  }
}

TEST(Mixture, CountsFarAwayAreExact) {
  const Mixture mixture({0.7, 0.2, 0.1});
  EXPECT_EQ(mixture.count(0, 10'000'000'000), 7'000'000'000);
  EXPECT_EQ(mixture.count(2, 10'000'000'000), 1'000'000'000);
  const auto place = mixture.at(10'000'000'000);
  EXPECT_EQ(mixture.draw_of(place.source, place.index), 10'000'000'000);
}

TEST(Mixture, RefusesWeightsThatAreNotPositive) {
  EXPECT_THROW(Mixture({1, 0}), std::invalid_argument);
  EXPECT_THROW(Mixture({1, -1}), std::invalid_argument);
  EXPECT_THROW(Mixture({1, NAN}), std::invalid_argument);
  EXPECT_THROW(Mixture(std::vector<double>{}), std::invalid_argument);
}

SamplerStage stage(int64_t steps, int64_t batch, std::vector<SamplerStage::Entry> entries) {
  return {steps, batch, std::move(entries)};
}

TEST(Sampler, AnEpochGivesEveryWindowOnce) {
  for (const int64_t windows : {1, 2, 7, 64, 101}) {
    const Sampler sampler(9, {"a"}, {stage(0, 3, {{0, 1, windows, 256}})});
    std::map<int64_t, std::set<int64_t>> seen;
    for (int64_t draw = 0; draw < 4 * windows; ++draw) {
      const auto got = sampler.at(1 + draw / 3, draw % 3);
      EXPECT_EQ(got.epoch, draw / windows);
      EXPECT_TRUE(seen[got.epoch].insert(got.window).second);
    }
    for (const auto& [epoch, set] : seen) EXPECT_EQ(set.size(), static_cast<size_t>(windows));
  }
}

// Random stages: what a source gives over the whole run is epoch after epoch of its permutations, without gap or
// repeat.
TEST(Sampler, StagesNeitherRepeatNorSkip) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 50; ++trial) {
    const std::vector<std::string> names = {"a", "b", "c"};
    const std::vector<int64_t> windows = {5 + static_cast<int64_t>(random() % 60), 31,
                                          1 + static_cast<int64_t>(random() % 9)};
    std::vector<SamplerStage> stages;
    for (int i = 0; i < 4; ++i) {
      std::vector<SamplerStage::Entry> entries;
      for (int32_t s = 0; s < 3; ++s) {
        if (random() % 3 != 0) entries.push_back({s, 1.0 + random() % 5, windows[s], 128});
      }
      if (entries.empty()) entries.push_back({1, 1, windows[1], 128});
      stages.push_back(stage(1 + random() % 20, 1 + random() % 6, entries));
    }
    const Sampler sampler(trial, names, stages);
    std::vector<int64_t> given(3, 0);
    for (int64_t step = 1; step <= sampler.steps(); ++step) {
      for (int64_t row = 0; row < sampler.settings(sampler.stage(step)).batch; ++row) {
        const auto draw = sampler.at(step, row);
        const int64_t j = given[draw.source]++, n = windows[draw.source];
        ASSERT_EQ(draw.epoch, j / n);
        ASSERT_EQ(draw.window, Permutation(trial, names[draw.source], j / n, n)(j % n));
        const auto places = sampler.find(sampler.stage(step), draw.source, draw.window, sampler.steps());
        ASSERT_EQ(std::count_if(places.begin(), places.end(),
                                [&](const auto& p) { return p.step == step && p.row == row && p.epoch == draw.epoch; }),
                  1);
      }
    }
  }
}

TEST(Sampler, AChangeOfContextBeginsTheNextEpoch) {
  // 10 windows at 256, 5 at 512. Stage 1 draws 14: epoch 1 is four windows in.
  const Sampler sampler(
      1, {"a"}, {stage(7, 2, {{0, 1, 10, 256}}), stage(5, 1, {{0, 1, 5, 512}}), stage(0, 1, {{0, 1, 10, 256}})});
  EXPECT_EQ(sampler.at(7, 1).epoch, 1);
  std::set<int64_t> seen;
  for (int64_t step = 8; step <= 12; ++step) {
    EXPECT_EQ(sampler.at(step, 0).epoch, 2);
    EXPECT_TRUE(seen.insert(sampler.at(step, 0).window).second);
  }
  EXPECT_EQ(sampler.at(13, 0).epoch, 3);  // the epoch at 512 was full, so nothing is cut short
  EXPECT_EQ(sampler.steps(), -1);
}

TEST(Sampler, FindNamesEveryPlaceAndNoOther) {
  const std::vector<SamplerStage> stages = {stage(9, 4, {{0, 2, 11, 64}, {1, 1, 6, 64}}),
                                            stage(0, 3, {{1, 1, 6, 64}, {0, 1, 11, 64}})};
  const Sampler sampler(4, {"a", "b"}, stages);
  for (int32_t source = 0; source < 2; ++source) {
    for (int64_t window = 0; window < (source == 0 ? 11 : 6); ++window) {
      std::set<std::pair<int64_t, int64_t>> expected, found;
      for (int64_t step = 1; step <= 30; ++step) {
        for (int64_t row = 0; row < sampler.settings(sampler.stage(step)).batch; ++row) {
          const auto draw = sampler.at(step, row);
          if (draw.source == source && draw.window == window) expected.insert({step, row});
        }
      }
      for (int64_t s = 0; s < 2; ++s) {
        for (const auto& place : sampler.find(s, source, window, 30)) found.insert({place.step, place.row});
      }
      EXPECT_EQ(found, expected);
    }
  }
}

TEST(Sampler, RefusesWhatMakesNoSense) {
  EXPECT_THROW(Sampler(1, {"a"}, {}), std::invalid_argument);
  EXPECT_THROW(Sampler(1, {"a"}, {stage(5, 0, {{0, 1, 5, 1}})}), std::invalid_argument);
  EXPECT_THROW(Sampler(1, {"a"}, {stage(5, 1, {})}), std::invalid_argument);
  EXPECT_THROW(Sampler(1, {"a"}, {stage(5, 1, {{0, 1, 0, 1}})}), std::invalid_argument);
  EXPECT_THROW(Sampler(1, {"a"}, {stage(5, 1, {{0, 1, 5, 1}, {0, 1, 5, 1}})}), std::invalid_argument);
  EXPECT_THROW(Sampler(1, {"a"}, {stage(0, 1, {{0, 1, 5, 1}}), stage(5, 1, {{0, 1, 5, 1}})}), std::invalid_argument);
  const Sampler sampler(1, {"a"}, {stage(5, 1, {{0, 1, 5, 1}})});
  EXPECT_THROW(sampler.at(0, 0), std::invalid_argument);
  EXPECT_THROW(sampler.at(6, 0), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::data
