// Killed at random moments, on a full disk, in a folder that cannot be written: whatever is listed is whole, and
// nothing that was said to be committed is lost.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include "checkpoints/async_writer.h"
#include "checkpoints/digest.h"
#include "checkpoints/journal.h"
#include "checkpoints/store.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

// State of step n: a function of n, so that the parent can say what a stored step has to hold.
struct State {
  std::vector<float> weights = std::vector<float>(30'000), moments = std::vector<float>(60'000);

  void set(int64_t step) {
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(step) + 0.001f * i;
    for (size_t i = 0; i < moments.size(); ++i) moments[i] = static_cast<float>(step) - 0.001f * i;
  }
  std::vector<TensorView> views() const {
    return {{"w", DType::F32, {300, 100}, weights.data()}, {"m.w", DType::F32, {60'000}, moments.data()}};
  }
};

// Goes on from the newest whole step as a run does, a step every few milliseconds, until it is killed. Says "committed
// N" through file descriptor 3 after each commit.
TEST(StoreCrash, DISABLED_Child) {
  const char* run = std::getenv("CAIRN_CRASH_RUN");
  ASSERT_NE(run, nullptr);
  Store store(run, Store::Mode::write);
  const auto newest = store.newest_valid();
  const int64_t start = newest.step ? newest.step->step : 0;
  store.truncate_after(start);
  Journal journal(fs::path(run) / "journal.jsonl", start);
  State state;
  AsyncWriter writer;
  for (int64_t step = start + 1;; ++step) {
    state.set(step);
    const auto live = state.views();
    const std::string digest = digest_tensors(live).hex();
    journal.append({{"step", step}, {"digest", digest}});
    writer.save(live, [&store, &journal, step, digest](std::span<const TensorView> snapshot) {
      journal.sync();
      CheckpointContents c;
      c.model = {snapshot[0]};
      c.optimizer = {snapshot[1]};
      c.config = "{}";
      c.state = {{"step", step}};
      c.about = {{"digest", digest}};
      c.shard_bytes = step % 2 ? kShardBytes : 1;
      store.commit(step, c);
      const std::string said = fmt::format("{}\n", step);
      if (::write(3, said.data(), said.size()) < 0) std::_Exit(1);
      store.retain({.all = false, .last = 3, .every = 10});
    });
    if (step % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

struct Child {
  pid_t pid = -1;
  int from = -1;

  explicit Child(const fs::path& run) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    pid = ::fork();
    if (pid == 0) {
      ::dup2(ends[1], 3);
      if (ends[0] != 3) ::close(ends[0]);
      if (ends[1] != 3) ::close(ends[1]);
      const int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, 1);
      ::setenv("CAIRN_CRASH_RUN", run.c_str(), 1);
      ::setenv("OMP_NUM_THREADS", "1", 1);
      ::execl("/proc/self/exe", "test", "--gtest_also_run_disabled_tests", "--gtest_filter=StoreCrash.DISABLED_Child",
              nullptr);
      std::_Exit(127);
    }
    ::close(ends[1]);
    from = ends[0];
  }

  // The newest step that the child said to be committed; -1 where it said none.
  int64_t kill_and_listen() {
    ::kill(pid, SIGKILL);
    std::string said;
    char buffer[4096];
    for (ssize_t n; (n = ::read(from, buffer, sizeof buffer)) > 0;) said.append(buffer, n);
    ::close(from);
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself, status " << status;
    const size_t last = said.rfind('\n', said.size() - 2);
    return said.empty() ? -1 : std::atoll(said.c_str() + (last == std::string::npos ? 0 : last + 1));
  }
};

TEST(StoreCrash, KilledAtThirtyRandomMoments) {
  const TemporaryFolder folder;
  const fs::path run = folder / "run";
  std::mt19937_64 random(std::random_device{}());
  int64_t newest_before = 0, kills_with_leftovers = 0, commits = 0;
  for (int round = 0; round < 30; ++round) {
    Child child(run);
    // Half of the kills at any moment of a start, half after a commit, in the midst of the next ones.
    if (round % 2) {
      char c;
      EXPECT_EQ(::read(child.from, &c, 1), 1);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % (round % 2 ? 150'000 : 90'000)));
    const int64_t said = child.kill_and_listen();

    for (const char* place : {"", "checkpoints"})
      if (fs::exists(run / place))
        for (const auto& entry : fs::directory_iterator(run / place))
          kills_with_leftovers += entry.path().filename().string().starts_with(".tmp-") ||
                                  entry.path().filename().string().starts_with(".del-");
    if (!fs::exists(run)) continue;
    const Store store(run, Store::Mode::read);
    std::vector<DamagedStep> damaged;
    const auto stored = store.list(&damaged);
    EXPECT_TRUE(damaged.empty()) << "step " << damaged[0].step << ": " << damaged[0].fault.message();
    State state;
    for (const StoredStep& s : stored) {
      EXPECT_EQ(verify_folder(s.path), std::nullopt) << s.step << ": " << verify_folder(s.path)->message();
      state.set(s.step);
      const auto expected = state.views();
      const auto model = ModelWeights::open(s.path);
      const auto optimizer = Safetensors::open(s.path / "training/optimizer.safetensors");
      const std::string digest = s.manifest.about["digest"];
      EXPECT_EQ(digest_tensor(model.get("w")) + digest_tensor(optimizer.get("m.w")), digest_tensors(expected))
          << s.step;
      EXPECT_EQ(digest, digest_tensors(expected).hex());
    }
    const int64_t newest = stored.empty() ? 0 : stored.back().step;
    EXPECT_GE(newest, std::max(said, newest_before)) << "a committed step was lost in round " << round;
    const auto index = index_journal(run / "journal.jsonl");  // throws where it is damaged
    EXPECT_GE(index.lines.empty() ? 0 : index.lines.back().step, newest) << "synced with each checkpoint";
    for (size_t k = 0; k < index.lines.size(); ++k) EXPECT_EQ(index.lines[k].step, static_cast<int64_t>(k) + 1);
    commits += newest - newest_before;
    newest_before = newest;
  }
  std::printf("30 kills: %ld commits, %ld leftovers seen\n", static_cast<long>(commits),
              static_cast<long>(kills_with_leftovers));
  EXPECT_GE(commits, 15) << "one a round that waited for it";
  Store store(run, Store::Mode::write);  // the lock went with its holder
  EXPECT_EQ(store.newest_valid().step->step, newest_before);
}

TEST(RunLockCrash, AnotherProcessIsNamed) {
  const TemporaryFolder folder;
  Child child(folder / "run");
  char c;
  ASSERT_EQ(::read(child.from, &c, 1), 1);  // it has committed, so it holds the lock
  EXPECT_SAYS(message_of([&] { Store(folder / "run", Store::Mode::write); }), fmt::format("process {} on", child.pid));
  child.kill_and_listen();
  EXPECT_NO_THROW(Store(folder / "run", Store::Mode::write));
}

// A file system of the test's own, of a few megabytes.
struct SmallDisk {
  fs::path path;
  bool mounted = false;

  SmallDisk(const fs::path& at, const char* options) : path(at) {
    fs::create_directories(at);
    mounted = ::mount("tmpfs", at.c_str(), "tmpfs", 0, options) == 0;
  }
  ~SmallDisk() {
    if (mounted) ::umount2(path.c_str(), MNT_DETACH);
  }
};

TEST(FullDisk, AClearErrorAndNothingLost) {
  const TemporaryFolder folder;
  SmallDisk disk(folder / "disk", "size=3m");
  if (!disk.mounted) GTEST_SKIP() << "a small file system can only be mounted by root";
  const fs::path run = disk.path / "run";
  Store store(run, Store::Mode::write);
  Journal journal(run / "journal.jsonl");
  std::vector<float> weights(200'000, 1.5f);
  CheckpointContents c;
  c.model = {{"w", DType::F32, {200'000}, weights.data()}};  // 800 kB
  for (int64_t step : {1, 2, 3}) store.commit(step, c);
  for (int k = 0; k < 2; ++k)
    EXPECT_SAYS(message_of([&] { store.commit(4, c); }), ".tmp-step-00000004", "No space left on device", "free space",
                "offset");
  EXPECT_EQ(store.list().size(), 3u);
  EXPECT_EQ(store.newest_valid().step->step, 3);
  EXPECT_FALSE(fs::exists(store.folder() / ".tmp-step-00000004")) << "what was half written has to go";

  int64_t lines = 0;  // until the journal is full as well
  const std::string message = message_of([&] {
    for (;; ++lines) journal.append({{"step", lines}, {"text", std::string(10'000, 'x')}});
  });
  EXPECT_SAYS(message, "journal.jsonl", "No space left on device");
  EXPECT_EQ(read_journal(run / "journal.jsonl").size(), static_cast<size_t>(lines)) << "no torn line stays";
  AsyncWriter writer;
  writer.save(c.model, [&](auto) { store.commit(4, c); });
  EXPECT_SAYS(message_of([&] { writer.drain(); }), "No space left on device");

  store.remove(1);  // room again: all goes on
  journal.append({{"step", lines}});
  EXPECT_EQ(index_journal(run / "journal.jsonl").lines.back().step, lines);
  EXPECT_NO_THROW(store.commit(4, c));
  EXPECT_EQ(store.newest_valid().step->step, 4);
}

TEST(ReadOnlyFolder, IsRefusedByNameAndCanBeRead) {
  const TemporaryFolder folder;
  SmallDisk disk(folder / "disk", "size=3m");
  const bool root = disk.mounted;
  if (!root && ::geteuid() == 0) GTEST_SKIP() << "root writes everywhere, and mounting is not allowed here";
  const fs::path run = disk.path / "run";
  const float x = 1;
  CheckpointContents c;
  c.model = {{"w", DType::F32, {1}, &x}};
  { Store(run, Store::Mode::write).commit(1, c); }
  if (root) {
    ASSERT_EQ(::mount("tmpfs", disk.path.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "size=3m"), 0);
  } else {
    fs::permissions(run, fs::perms::owner_read | fs::perms::owner_exec);
    fs::permissions(run / ".lock", fs::perms::owner_read);
  }
  EXPECT_SAYS(message_of([&] { Store(run, Store::Mode::write); }), run.string(),
              root ? "Read-only file system" : "Permission denied");
  EXPECT_EQ(Store(run, Store::Mode::read).newest_valid().step->step, 1);
  EXPECT_SAYS(message_of([&] { FolderCommit(run / "x"); }), (run / ".tmp-x").string(),
              "choose a place that can be written");
  EXPECT_SAYS(message_of([&] { Journal(run / "journal.jsonl"); }), "journal.jsonl");
  EXPECT_SAYS(message_of([&] { write_safetensors(run / "w.safetensors", c.model); }), "w.safetensors",
              "choose a folder");
  if (!root) fs::permissions(run, fs::perms::owner_all);
}

}  // namespace
}  // namespace cairn::checkpoints
