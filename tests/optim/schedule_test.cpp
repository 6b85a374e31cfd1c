// labels: quick
// Schedules against their closed forms at the places that are easy to get wrong by one.
#include "optim/schedule.h"

#include <gtest/gtest.h>

namespace cairn::optim {
namespace {

ScheduleOptions named(const char* name, int64_t warmup, std::optional<int64_t> decay = {}, double final = 0) {
  return {.name = name, .warmup = warmup, .decay = decay, .final = final};
}

TEST(Schedule, WarmUpIsLinearAndReachesOne) {
  for (const auto& name : schedule_names()) {
    EXPECT_DOUBLE_EQ(schedule_multiplier(named(name.c_str(), 50), 1, 1000), 1.0 / 50) << name;
    EXPECT_DOUBLE_EQ(schedule_multiplier(named(name.c_str(), 50), 25, 1000), 0.5) << name;
    EXPECT_DOUBLE_EQ(schedule_multiplier(named(name.c_str(), 50), 50, 1000), 1.0) << name;
  }
}

TEST(Schedule, ConstantStays) {
  EXPECT_EQ(schedule_multiplier(named("constant", 0), 1, 10), 1.0);
  EXPECT_EQ(schedule_multiplier(named("constant", 3), 10, 10), 1.0);
}

TEST(Schedule, LinearFallsToFinal) {
  const auto o = named("linear", 100, {}, 0.1);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 101, 1100), 1 - 0.9 * 0.001);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 600, 1100), 0.55);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 1100, 1100), 0.1);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 5000, 1100), 0.1);  // beyond the end
  const auto shorter = named("linear", 100, 500, 0.1);
  EXPECT_DOUBLE_EQ(schedule_multiplier(shorter, 350, 1100), 0.55);
  EXPECT_DOUBLE_EQ(schedule_multiplier(shorter, 800, 1100), 0.1);
}

TEST(Schedule, CosineFallsToFinal) {
  const auto o = named("cosine", 0, {}, 0.2);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 50, 100), 0.6);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 25, 100), 0.2 + 0.8 * 0.5 * (1 + std::sqrt(0.5)));
  EXPECT_NEAR(schedule_multiplier(o, 100, 100), 0.2, 1e-15);
}

TEST(Schedule, WsdIsStableThenFalls) {
  const auto o = named("wsd", 50, 200, 0.0);
  EXPECT_EQ(schedule_multiplier(o, 51, 1000), 1.0);
  EXPECT_EQ(schedule_multiplier(o, 800, 1000), 1.0);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 801, 1000), 1 - 1.0 / 200);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 900, 1000), 0.5);
  EXPECT_DOUBLE_EQ(schedule_multiplier(o, 1000, 1000), 0.0);
  const auto tenth = named("wsd", 0);
  EXPECT_EQ(schedule_multiplier(tenth, 900, 1000), 1.0);
  EXPECT_DOUBLE_EQ(schedule_multiplier(tenth, 950, 1000), 0.5);
}

TEST(Schedule, InverseSquareRootMeetsTheWarmUp) {
  EXPECT_DOUBLE_EQ(schedule_multiplier(named("inverse_sqrt", 100), 400, 1000), 0.5);
  EXPECT_DOUBLE_EQ(schedule_multiplier(named("inverse_sqrt", 0), 1, 1000), 1.0);
  EXPECT_DOUBLE_EQ(schedule_multiplier(named("inverse_sqrt", 0), 4, 1000), 0.5);
}

TEST(Schedule, RefusesWhatDoesNotFit) {
  EXPECT_NO_THROW(check_schedule(named("wsd", 50, 200), 250));
  EXPECT_THROW(check_schedule(named("wsd", 51, 200), 250), std::invalid_argument);
  EXPECT_THROW(check_schedule(named("cosine", 251), 250), std::invalid_argument);
  EXPECT_THROW(check_schedule(named("cosine", 0, {}, 1.5), 250), std::invalid_argument);
  try {
    check_schedule(named("cosin", 0), 10);
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_STREQ(
        e.what(),
        "optim.schedule.name: unknown schedule 'cosin' (there are constant, linear, cosine, wsd, inverse_sqrt)");
  }
}

}  // namespace
}  // namespace cairn::optim
