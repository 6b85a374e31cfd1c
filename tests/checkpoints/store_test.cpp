// labels: quick
// A run's checkpoints: schedules and retention by rule, listing, falling back over damage, one writer at a time.
#include "checkpoints/store.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using Steps = std::vector<int64_t>;

const float kWeights[4] = {1, 2, 3, 4};

CheckpointContents contents(double loss = 1) {
  CheckpointContents c;
  c.model = {{"w", DType::F32, {4}, kWeights}};
  c.optimizer = {{"m.w", DType::F32, {4}, kWeights}};
  c.config = "{}\n";
  c.state = {{"seed", 1234}};
  c.files = {{"tokenizer.json", "{}"}};
  c.about = {{"kind", "full"}, {"metrics", {{"loss", loss}}}};
  return c;
}

Steps steps_of(const Store& store) {
  Steps steps;
  for (const StoredStep& s : store.list()) steps.push_back(s.step);
  return steps;
}

void flip_byte(const fs::path& path) {
  std::string bytes = slurp(path);
  bytes.back() ^= 1;
  spill(path, bytes);
}

Steps due_steps(const Schedule& schedule, int64_t last) {
  Steps steps;
  for (int64_t step = 0; step <= last; ++step)
    if (schedule.due(step, last)) steps.push_back(step);
  return steps;
}

TEST(Schedule, Rules) {
  EXPECT_EQ(due_steps({}, 10), (Steps{10}));
  EXPECT_EQ(due_steps({.every = 4, .at_end = false}, 10), (Steps{4, 8}));
  EXPECT_EQ(due_steps({.log_spaced = Spacing::doubling}, 20), (Steps{0, 1, 2, 4, 8, 16, 20}));
  EXPECT_EQ(due_steps({.log_spaced = Spacing::one_two_five}, 60), (Steps{0, 1, 2, 5, 10, 20, 50, 60}));
  EXPECT_EQ(due_steps({.every = 5, .log_spaced = Spacing::doubling, .at = {7, 99}}, 9),
            (Steps{0, 1, 2, 4, 5, 7, 8, 9}));
  EXPECT_FALSE(Schedule{}.due(10)) << "no end is known";
  EXPECT_TRUE((Schedule{.log_spaced = Spacing::doubling}.due(int64_t{1} << 40)));
  EXPECT_TRUE((Schedule{.log_spaced = Spacing::one_two_five}.due(5'000'000'000)));
}

TEST(Retention, Rules) {
  const Steps steps = {0, 10, 20, 30, 40, 50};
  const std::map<int64_t, double> loss = {{10, 3.0}, {20, 1.0}, {30, std::nan("")}, {40, 1.0}, {50, 2.0}};
  const auto value = [&](int64_t step) { return loss.contains(step) ? std::optional(loss.at(step)) : std::nullopt; };
  const auto gone = [&](const Retention& r) { return r.to_delete(steps, value); };
  EXPECT_EQ(gone({}), Steps{});
  EXPECT_EQ(gone({.all = false}), (Steps{0, 10, 20, 30, 40})) << "the newest stays whatever the rules say";
  EXPECT_EQ(gone({.all = false, .last = 2}), (Steps{0, 10, 20, 30}));
  EXPECT_EQ(gone({.all = false, .last = 99}), Steps{});
  EXPECT_EQ(gone({.all = false, .every = 20}), (Steps{10, 30}));
  EXPECT_EQ(gone({.all = false, .at = {10, 11}}), (Steps{0, 20, 30, 40}));
  EXPECT_EQ(gone({.all = false, .metric = "loss", .best = 1}), (Steps{0, 10, 30, 40})) << "of equal values the earlier";
  EXPECT_EQ(gone({.all = false, .metric = "loss", .lower_is_better = false, .best = 1}), (Steps{0, 20, 30, 40}));
  EXPECT_EQ(gone({.all = false, .last = 1, .every = 30, .metric = "loss", .best = 2}), (Steps{10}));
  EXPECT_EQ((Retention{.all = false, .last = 3}.to_delete({})), Steps{});
}

TEST(Store, NamesOfFolders) {
  EXPECT_EQ(Store::folder_name(0), "step-00000000");
  EXPECT_EQ(Store::folder_name(1234567890123), "step-1234567890123");
  EXPECT_THROW(Store::folder_name(-1), std::invalid_argument);
  for (int64_t step : {int64_t{0}, int64_t{7}, int64_t{99'999'999}, int64_t{100'000'000}, INT64_MAX})
    EXPECT_EQ(Store::step_of(Store::folder_name(step)), step);
  for (const char* bad : {"", "step-", "step-7", "step-0000007", "step-000000007", "step--0000007", "step-0000000x",
                          "step-+0000007", ".tmp-step-00000007", "Step-00000007", "step-99999999999999999999"})
    EXPECT_EQ(Store::step_of(bad), std::nullopt) << bad;
}

TEST(Store, CommitListAndContents) {
  const TemporaryFolder folder;
  Store store(folder / "run", Store::Mode::write);
  EXPECT_EQ(steps_of(store), Steps{});
  EXPECT_FALSE(store.newest_valid().step);
  for (int64_t step : {10, 0, 5}) store.commit(step, contents(step));
  EXPECT_EQ(steps_of(store), (Steps{0, 5, 10}));
  const auto newest = store.newest_valid();
  ASSERT_TRUE(newest.step);
  EXPECT_EQ(newest.step->step, 10);
  EXPECT_EQ(newest.step->metric("loss"), 10.0);
  EXPECT_EQ(newest.step->metric("none"), std::nullopt);
  EXPECT_EQ(newest.step->manifest.about["step"], 10);
  EXPECT_EQ(store.newest_valid(9).step->step, 5);
  EXPECT_EQ(verify_folder(store.path_of(10)), std::nullopt);
  EXPECT_EQ(ModelWeights::open(store.path_of(10)).get("w").numel(), 4);
  EXPECT_EQ(slurp(store.path_of(10) / "training/state.json"), "{\n  \"seed\": 1234\n}\n");
  EXPECT_TRUE(fs::exists(store.path_of(10) / "tokenizer.json"));
  EXPECT_SAYS(message_of([&] { store.commit(5, contents()); }), "step-00000005 exists already");
  EXPECT_EQ(steps_of(Store(folder / "run", Store::Mode::read)), (Steps{0, 5, 10}));
  EXPECT_SAYS(message_of([&] { Store(folder / "none", Store::Mode::read); }), "none is not a run");
  EXPECT_THROW(Store(folder / "run", Store::Mode::read).commit(11, contents()), std::logic_error);
}

TEST(Store, FallsBackOverDamageAndNamesIt) {
  const TemporaryFolder folder;
  Store store(folder / "run", Store::Mode::write);
  for (int64_t step : {1, 2, 3, 4, 5}) store.commit(step, contents());
  flip_byte(store.path_of(5) / "model.safetensors");
  fs::remove(store.path_of(4) / "training/optimizer.safetensors");
  fs::remove(store.path_of(3) / kManifestName);
  const auto newest = store.newest_valid();
  ASSERT_TRUE(newest.step);
  EXPECT_EQ(newest.step->step, 2);
  ASSERT_EQ(newest.damaged.size(), 3u);
  EXPECT_EQ(newest.damaged[0].step, 5);
  EXPECT_SAYS(newest.damaged[0].fault.message(), "model.safetensors is corrupted");
  EXPECT_SAYS(newest.damaged[1].fault.message(), "training/optimizer.safetensors is missing");
  EXPECT_SAYS(newest.damaged[2].fault.message(), "MANIFEST.json is missing");
  std::vector<DamagedStep> damaged;
  EXPECT_EQ(store.list(&damaged).size(), 3u) << "1, 2 and 5: listing reads no file";
  EXPECT_EQ(damaged.size(), 2u);
  spill(store.path_of(2) / "notes.txt", "mine");
  EXPECT_EQ(store.newest_valid().step->step, 2) << "a file besides does no harm";
  EXPECT_EQ(store.truncate_after(2), (Steps{5, 4, 3})) << "damaged ones too";
  store.commit(3, contents());
  EXPECT_EQ(steps_of(store), (Steps{1, 2, 3}));
}

TEST(Store, RetentionDeletesByRule) {
  const TemporaryFolder folder;
  Store store(folder / "run", Store::Mode::write);
  const double loss[] = {9, 5, 7, 3, 8, 6};
  for (int64_t step = 0; step < 6; ++step) store.commit(step, contents(loss[step]));
  EXPECT_EQ(store.retain({}), Steps{});
  EXPECT_EQ(store.retain({.all = false, .last = 2, .metric = "loss", .best = 1}), (Steps{0, 1, 2}));
  EXPECT_EQ(steps_of(store), (Steps{3, 4, 5}));
  store.remove(3);
  EXPECT_EQ(steps_of(store), (Steps{4, 5}));
  EXPECT_THROW(store.remove(3), std::invalid_argument);
  EXPECT_SAYS(message_of([&] { store.remove(5); }), "step 5 is the newest");
  EXPECT_EQ(std::distance(fs::directory_iterator(store.folder()), {}), 2) << "nothing hidden is left";
}

TEST(Store, WriterRemovesWhatACrashLeft) {
  const TemporaryFolder folder;
  { Store(folder / "run", Store::Mode::write).commit(1, contents()); }
  fs::create_directories(folder / "run/checkpoints/.tmp-step-00000002/training");
  spill(folder / "run/checkpoints/.tmp-step-00000002/training/x", "torn");
  fs::create_directories(folder / "run/checkpoints/.del-step-00000000");
  spill(folder / "run/.tmp-journal.jsonl", "torn");
  { EXPECT_EQ(steps_of(Store(folder / "run", Store::Mode::read)), (Steps{1})); }
  EXPECT_TRUE(fs::exists(folder / "run/.tmp-journal.jsonl")) << "a reader changes nothing";
  const Store store(folder / "run", Store::Mode::write);
  EXPECT_EQ(store.leftovers().size(), 3u);
  EXPECT_FALSE(fs::exists(folder / "run/.tmp-journal.jsonl"));
  EXPECT_EQ(std::distance(fs::directory_iterator(store.folder()), {}), 1);
  EXPECT_EQ(steps_of(store), (Steps{1}));
}

TEST(RunLock, ASecondWriterIsRefusedByName) {
  const TemporaryFolder folder;
  {
    Store store(folder / "run", Store::Mode::write);
    EXPECT_SAYS(message_of([&] { Store(folder / "run", Store::Mode::write); }), "run is being written by",
                fmt::format("process {} on ", ::getpid()));
    EXPECT_NO_THROW(Store(folder / "run", Store::Mode::read));
    Store moved = std::move(store);
    EXPECT_ANY_THROW(RunLock(folder / "run"));
  }
  EXPECT_NO_THROW(Store(folder / "run", Store::Mode::write)) << "let go";
  spill(folder / "file", "");
  EXPECT_SAYS(message_of([&] { RunLock(folder / "file/run"); }), "file/run");
}

}  // namespace
}  // namespace cairn::checkpoints
