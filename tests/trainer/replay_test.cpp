// labels: quick
#include <gtest/gtest.h>

#include "trainer/replay_jobs.h"
#include "trainer/replay_record.h"
#include "trainer/spike.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

TEST(ShareOut, CutsAtCheckpointsNearTheFairShare) {
  EXPECT_EQ(share_out(0, 60, {20, 40, 60}, 2), (Ranges{{0, 40}, {40, 60}}));
  EXPECT_EQ(share_out(0, 60, {20, 40, 60}, 3), (Ranges{{0, 20}, {20, 40}, {40, 60}}));
  EXPECT_EQ(share_out(0, 60, {20, 40, 60}, 8), (Ranges{{0, 20}, {20, 40}, {40, 60}}));
  EXPECT_EQ(share_out(7, 50, {20, 40, 60}, 1), (Ranges{{7, 50}}));
  EXPECT_EQ(share_out(7, 50, {}, 4), (Ranges{{7, 50}}));
  EXPECT_EQ(share_out(30, 30, {20, 40}, 4), (Ranges{{30, 30}}));
}

TEST(ShareOut, CoversEveryStepOnce) {
  for (int jobs = 1; jobs < 9; ++jobs) {
    const Ranges ranges = share_out(3, 97, {0, 10, 11, 12, 50, 51, 90}, jobs);
    EXPECT_LE(ranges.size(), jobs);
    EXPECT_EQ(ranges.front().first, 3);
    EXPECT_EQ(ranges.back().second, 97);
    for (size_t i = 1; i < ranges.size(); ++i) EXPECT_EQ(ranges[i].first, ranges[i - 1].second);
  }
}

// The settings that made step n, as build.json tells after all that happened.
std::string made_by(const Json& build, int64_t step) {
  for (const Json& former : build.value("former_settings", Json::array())) {
    if (step <= former.at("last_step").get<int64_t>()) return former.at("settings");
  }
  return build.at("settings");
}

TEST(Settings, ThoseThatMadeAStepAreKept) {
  Json build{{"settings", "a"}};
  note_settings(build, 10, "a");
  EXPECT_FALSE(build.contains("former_settings"));
  note_settings(build, 20, "b");
  note_settings(build, 30, "c");
  EXPECT_EQ(made_by(build, 20), "a");
  EXPECT_EQ(made_by(build, 21), "b");
  EXPECT_EQ(made_by(build, 30), "b");
  EXPECT_EQ(made_by(build, 31), "c");
}

TEST(Settings, ARunThatGoesBackForgetsWhatLayBehind) {
  Json build{{"settings", "a"}};
  note_settings(build, 20, "b");
  note_settings(build, 30, "c");
  note_settings(build, 10, "c");  // the checkpoints after 10 were lost
  EXPECT_EQ(made_by(build, 10), "a");
  EXPECT_EQ(made_by(build, 11), "c");
  EXPECT_EQ(build.at("former_settings").size(), 1);
  note_settings(build, 0, "d");
  EXPECT_EQ(made_by(build, 1), "d");
  EXPECT_FALSE(build.contains("former_settings"));
}

TEST(SpikeRule, NeedsAWholeWindow) {
  SpikeRule rule;
  const config::SpikeOptions options{.action = "skip", .factor = 2, .window = 3};
  for (double loss : {5.0, 1.0}) rule.remember(loss, 3);
  EXPECT_EQ(rule.threshold(options), 0);
  rule.remember(3, 3);
  EXPECT_EQ(rule.threshold(options), 6);
  rule.remember(1, 3);  // 1 3 1
  EXPECT_EQ(rule.threshold(options), 2);
  EXPECT_EQ(rule.threshold({.action = "none", .factor = 2, .window = 3}), 0);
}

}  // namespace
}  // namespace cairn
