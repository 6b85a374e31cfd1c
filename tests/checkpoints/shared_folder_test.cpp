// One folder by several writers: who writes what, what the first one waits for, how pieces come together again.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "checkpoints/shared_folder.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

TEST(ShareOut, IsFair) {
  using Cuts = std::vector<size_t>;
  EXPECT_EQ(share_out({10, 10, 10, 10}, {0, 0}), (Cuts{0, 2, 4}));
  EXPECT_EQ(share_out({10, 10, 10, 10}, {20, 0}), (Cuts{0, 1, 4}));  // 30 and 30
  EXPECT_EQ(share_out({10, 10, 10, 10}, {0, 20}), (Cuts{0, 3, 4}));
  EXPECT_EQ(share_out({10}, {0, 0, 0}).back(), 1u);
  EXPECT_EQ(share_out({}, {5, 0}), (Cuts{0, 0, 0}));
  EXPECT_EQ(share_out({10, 10}, {1000, 0}), (Cuts{0, 0, 2}));  // who has enough gets nothing
  // Many tensors of many sizes: no writer is further from the mean than the largest tensor.
  std::vector<uint64_t> bytes;
  for (uint64_t i = 0; i < 300; ++i) bytes.push_back(1 + i * 7919 % 1000);
  const uint64_t sum = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
  for (size_t writers : {1, 2, 3, 8}) {
    const auto cuts = share_out(bytes, std::vector<uint64_t>(writers, 0));
    ASSERT_EQ(cuts.size(), writers + 1);
    EXPECT_EQ(cuts.front(), 0u);
    EXPECT_EQ(cuts.back(), bytes.size());
    for (size_t r = 0; r < writers; ++r) {
      ASSERT_LE(cuts[r], cuts[r + 1]);
      const uint64_t part = std::accumulate(bytes.begin() + cuts[r], bytes.begin() + cuts[r + 1], uint64_t{0});
      EXPECT_NEAR(static_cast<double>(part), static_cast<double>(sum) / writers, 1000);
    }
  }
}

TEST(PieceNames, BothWays) {
  using Whole = std::pair<std::string, int64_t>;
  EXPECT_EQ(piece_name("a.b", 4096), "a.b[4096]");
  EXPECT_EQ(whole_name("a.b[4096]"), Whole("a.b", 4096));
  for (const char* name : {"a", "a[]", "a[x]", "a[1", "a[-1]", "a[1]b"}) EXPECT_EQ(whole_name(name), Whole(name, 0));
}

// Tensor "whole" [4] of writer 0, "cut" [2, 3] of writers 1 and 2.
const std::vector<float> kWhole = {1, 2, 3, 4}, kCut = {10, 11, 12, 13, 14, 15};

void write_part(const fs::path& target, int rank, const std::string& attempt, std::chrono::milliseconds limit = 20s,
                const std::function<void()>& check = {}) {
  SharedFolder folder(target, {rank, 3, attempt});
  const auto path = [](int k) { return "training/optimizer-0000" + std::to_string(k) + "-of-00003.safetensors"; };
  std::vector<TensorPiece> tensors;
  if (rank == 0) folder.write("config.json", "{}");
  if (rank == 0) tensors.push_back({{"whole", DType::F32, {4}, kWhole.data()}, 0, {4}});
  if (rank == 1) tensors.push_back({{"cut", DType::F32, {2}, kCut.data() + 4}, 4, {2, 3}});
  if (rank == 2) tensors.push_back({{"cut", DType::F32, {4}, kCut.data()}, 0, {2, 3}});
  folder.write_tensors("training/optimizer", path(rank + 1), tensors);
  folder.commit({{"step", 7}}, limit, check);
}

TEST(SharedFolder, IsCommittedWhenAllHaveWritten) {
  const TemporaryFolder folder;
  const fs::path target = folder / "step";
  std::thread first([&] { write_part(target, 0, "a"); });
  for (int rank : {2, 1}) {
    EXPECT_FALSE(fs::exists(target));
    write_part(target, rank, "a");  // returns at once
  }
  first.join();
  EXPECT_EQ(verify_folder(target), std::nullopt);
  const Manifest manifest = read_manifest(target);
  EXPECT_EQ(manifest.files.size(), 5u);
  EXPECT_EQ(manifest.about.at("step"), 7);
  for (const auto& entry : fs::directory_iterator(folder.path)) EXPECT_EQ(entry.path(), target) << "left behind";

  const auto index = nlohmann::json::parse(read_file(target / "training/optimizer.safetensors.index.json"));
  EXPECT_EQ(index.at("weight_map").at("cut[4]"), "optimizer-00002-of-00003.safetensors");
  EXPECT_EQ(index.at("pieces"), nlohmann::json({{"cut", {2, 3}}}));
  EXPECT_EQ(index.at("metadata").at("total_size"), 40);

  auto stored = PiecedTensors::open(target / "training/optimizer");
  EXPECT_EQ(stored.names(), (std::vector<std::string>{"cut", "whole"}));
  ASSERT_EQ(stored.numel("cut"), 6);
  std::vector<float> cut(6), middle(3);
  stored.read("cut", 0, 6, cut.data());
  EXPECT_EQ(cut, kCut);
  stored.read("cut", 2, 3, middle.data());
  EXPECT_EQ(middle, (std::vector<float>{12, 13, 14}));
  const TensorView view = stored.get("cut");
  EXPECT_EQ(view.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::vector<float>(static_cast<const float*>(view.data), static_cast<const float*>(view.data) + 6), kCut);
  EXPECT_EQ(stored.get("whole").numel(), 4);
  EXPECT_SAYS(message_of([&] { stored.read("cut", 5, 2, cut.data()); }), "elements 5 to 7 of 'cut'", "6 are stored");
  EXPECT_SAYS(message_of([&] { stored.numel("cot"); }), "no tensor 'cot'");
}

TEST(SharedFolder, AWriterThatFailsEndsTheWait) {
  const TemporaryFolder folder;
  const fs::path target = folder / "step";
  { SharedFolder part(target, {1, 3, "a"}); }  // goes without a commit
  EXPECT_SAYS(message_of([&] { write_part(target, 0, "a"); }), "step is not committed", "rank 1 could not write");
  EXPECT_FALSE(fs::exists(target));
  EXPECT_FALSE(fs::exists(folder / ".tmp-step.a"));
}

TEST(SharedFolder, WaitsNoLongerThanItShould) {
  const TemporaryFolder folder;
  EXPECT_SAYS(message_of([&] { write_part(folder / "x", 0, "a", 100ms); }), "rank(s) 1, 2 have not written");
  int looks = 0;
  EXPECT_SAYS(message_of([&] {
                write_part(folder / "x", 0, "a", 20s, [&] {
                  if (++looks == 3) throw std::runtime_error("rank 2 is lost");
                });
              }),
              "rank 2 is lost");
  EXPECT_FALSE(fs::exists(folder / "x"));
}

// A rank that outlives the others' death writes on; those who start anew are not disturbed.
TEST(SharedFolder, AttemptsAreKeptApart) {
  const TemporaryFolder folder;
  const fs::path target = folder / "step";
  write_part(target, 1, "old");
  write_part(target, 2, "old");
  EXPECT_THROW(write_part(target, 0, "new", 100ms), std::runtime_error);
  write_part(target, 1, "new");
  write_part(target, 2, "new");
  write_part(target, 0, "new");
  EXPECT_EQ(verify_folder(target), std::nullopt);
}

TEST(SharedFolder, FilesThatAreNotThereAreNotTakenUp) {
  const TemporaryFolder folder;
  write_part(folder / "x", 1, "a");
  write_part(folder / "x", 2, "a");
  fs::resize_file(folder / ".tmp-x.a/training/optimizer-00002-of-00003.safetensors", 3);
  EXPECT_SAYS(message_of([&] { write_part(folder / "x", 0, "a"); }), "optimizer-00002-of-00003", "here are 3");
}

TEST(PiecedTensors, NamesAPieceThatIsMissing) {
  const TemporaryFolder folder;
  const std::vector<TensorView> views = {{"a[2]", DType::F32, {2}, kWhole.data()}};
  write_safetensors(folder / "optimizer.safetensors", views);
  EXPECT_SAYS(message_of([&] { PiecedTensors::open(folder / "optimizer"); }), "the pieces of 'a'", "'a[2]' begins at 2",
              "expected 0");
  EXPECT_SAYS(message_of([&] { PiecedTensors::open(folder / "none"); }), "none.safetensors", "does not exist");
}

}  // namespace
}  // namespace cairn::checkpoints
