// labels: quick
// Committed folders: every damage is found and named; nothing appears before it is whole.
#include "checkpoints/manifest.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>

#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

Manifest commit_sample(const fs::path& target) {
  std::vector<float> weights(5000);
  std::iota(weights.begin(), weights.end(), 0.5f);
  const std::vector<TensorView> views = {{"w", DType::F32, {50, 100}, weights.data()}};
  FolderCommit folder(target);
  folder.write("config.json", "{\"a\": 1}\n");
  folder.write_model(views);
  folder.write_safetensors("training/optimizer.safetensors", views);
  folder.write("training/state.json", "{\"b\": 1}\n");
  folder.write("empty", "");
  EXPECT_FALSE(fs::exists(target)) << "it appears at the commit";
  return folder.commit({{"step", 7}, {"metrics", {{"loss", 2.5}}}});
}

TEST(Manifest, CommitAndReadBack) {
  const TemporaryFolder folder;
  const Manifest written = commit_sample(folder / "x");
  const Manifest read = read_manifest(folder / "x");
  EXPECT_EQ(read.files, written.files);
  EXPECT_EQ(read.files.size(), 5u);
  EXPECT_EQ(read.files[3].path, "training/optimizer.safetensors");
  EXPECT_EQ(read.about["step"], 7);
  EXPECT_EQ(read.about["metrics"]["loss"], 2.5);
  EXPECT_EQ(verify_folder(folder / "x"), std::nullopt);
  EXPECT_EQ(check_folder(folder / "x").bytes(), written.bytes());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 1) << "nothing hidden is left";
  for (const FileEntry& f : read.files) {
    FileEntry again = digest_file(folder.path / "x" / f.path);
    again.path = f.path;
    EXPECT_EQ(again, f);
  }
}

TEST(Manifest, EveryDamageIsNamed) {
  const TemporaryFolder folder;
  commit_sample(folder / "good");
  const fs::path bad = folder / "bad";
  const auto damaged = [&](auto&& damage) {
    fs::remove_all(bad);
    fs::copy(folder / "good", bad, fs::copy_options::recursive);
    damage();
    const auto fault = verify_folder(bad);
    EXPECT_TRUE(fault.has_value());
    return fault.value_or(Fault{});
  };
  const fs::path model = bad / "model.safetensors", optimizer = bad / "training/optimizer.safetensors";

  Fault fault = damaged([&] {
    std::string bytes = slurp(model);
    bytes[bytes.size() / 2] ^= 4;
    spill(model, bytes);
  });
  EXPECT_EQ(fault.file, "model.safetensors");
  EXPECT_EQ(fault.problem, "corrupted");
  EXPECT_SAYS(fault.expected, read_manifest(bad).files[2].xxh3);
  EXPECT_SAYS(message_of([&] { check_folder(bad); }), "bad", "model.safetensors is corrupted", "expected", "found");
  EXPECT_EQ(verify_folder(bad, Depth::sizes), std::nullopt) << "sizes alone do not see it";

  fault = damaged([&] { fs::resize_file(optimizer, fs::file_size(optimizer) - 1); });
  EXPECT_SAYS(fault.message(), "training/optimizer.safetensors is truncated", "20104 bytes expected",
              "20103 bytes found");
  EXPECT_TRUE(verify_folder(bad, Depth::sizes).has_value());
  fault = damaged([&] { fs::resize_file(optimizer, fs::file_size(optimizer) + 1); });
  EXPECT_SAYS(fault.message(), "training/optimizer.safetensors is too long");
  fault = damaged([&] { fs::remove(bad / "config.json"); });
  EXPECT_SAYS(fault.message(), "config.json is missing");
  fault = damaged([&] {  // same size
    fs::rename(bad / "config.json", bad / "t");
    fs::rename(bad / "training/state.json", bad / "config.json");
    fs::rename(bad / "t", bad / "training/state.json");
  });
  EXPECT_SAYS(fault.message(), "config.json is corrupted");
  fault = damaged([&] { spill(bad / "training/new.txt", "x"); });
  EXPECT_SAYS(fault.message(), "training/new.txt is extra");
  EXPECT_NO_THROW(check_folder(bad)) << "a file besides does not stop a load";
  fault = damaged([&] { fs::remove(bad / "config.json"), fs::create_directory(bad / "config.json"); });
  EXPECT_SAYS(fault.message(), "config.json is missing");
  fault = damaged([&] { fs::remove(bad / kManifestName); });
  EXPECT_SAYS(fault.message(), "MANIFEST.json is missing");
  EXPECT_SAYS(message_of([&] { check_folder(folder / "none"); }), "none", "MANIFEST.json is missing");
}

TEST(Manifest, EveryChangedByteOfTheManifestIsSeen) {
  const TemporaryFolder folder;
  commit_sample(folder / "x");
  const fs::path path = folder / "x/MANIFEST.json";
  const std::string good = slurp(path);
  const auto with = [&](const std::string& text) {
    fs::remove(path);
    spill(path, text);
    return verify_folder(folder / "x", Depth::sizes);
  };
  for (size_t at = 0; at < good.size(); ++at) {
    std::string text = good;
    text[at] ^= 1;
    EXPECT_TRUE(with(text).has_value()) << at;
    EXPECT_TRUE(with(good.substr(0, at)).has_value()) << at;
  }
  EXPECT_TRUE(with(good + " ").has_value());
  EXPECT_FALSE(with(good).has_value());
}

TEST(FolderCommit, LeavesNothingWhereItIsNotCommitted) {
  const TemporaryFolder folder;
  {
    FolderCommit commit(folder / "x");
    commit.write("a", "b");
    EXPECT_TRUE(fs::exists(folder / ".tmp-x/a"));
  }
  EXPECT_TRUE(fs::is_empty(folder.path));
  fs::create_directories(folder / ".tmp-x/left");  // of a crash
  commit_sample(folder / "x");
  EXPECT_EQ(verify_folder(folder / "x"), std::nullopt);
  EXPECT_SAYS(message_of([&] { FolderCommit(folder / "x"); }), "x exists already");
  EXPECT_EQ(verify_folder(folder / "x"), std::nullopt);
}

TEST(FolderCommit, RefusesPathsThatLeaveTheFolder) {
  const TemporaryFolder folder;
  FolderCommit commit(folder / "x");
  for (const char* path : {"", "/etc/x", "../x", "a/../../x", "./a", "a/", "MANIFEST.json"})
    EXPECT_THROW(commit.write(path, ""), std::invalid_argument) << path;
  commit.write("a", "");
  EXPECT_THROW(commit.write("a", ""), std::invalid_argument) << "twice";
}

TEST(FolderCommit, AdoptsWhatOthersWrote) {
  const TemporaryFolder folder;
  FolderCommit commit(folder / "x");
  const float x = 3;
  const std::vector<TensorView> views = {{"w", DType::F32, {1}, &x}};
  fs::create_directories(commit.temporary() / "training");
  FileEntry entry = write_safetensors(commit.temporary() / "training/rank1.safetensors", views);
  entry.path = "training/rank1.safetensors";
  commit.adopt(entry);
  commit.write("config.json", "{}");
  commit.commit();
  EXPECT_EQ(verify_folder(folder / "x"), std::nullopt);
  EXPECT_EQ(read_manifest(folder / "x").files.size(), 2u);
}

TEST(FileWriter, LargeFilesInOddPieces) {
  const TemporaryFolder folder;
  std::string bytes(37'000'001, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  FileWriter file(folder / "x");
  const size_t pieces[] = {1, 9'000'000, 3, 8 << 20, 17 << 20};
  size_t at = 0;
  for (size_t k = 0; at < bytes.size(); ++k) {
    const size_t n = std::min(pieces[k % 5], bytes.size() - at);
    file.write(bytes.data() + at, n);
    at += n;
  }
  const FileEntry entry = file.finish();
  EXPECT_EQ(entry.size, bytes.size());
  EXPECT_EQ(entry, digest_file(folder / "x"));
  EXPECT_TRUE(slurp(folder / "x") == bytes);
  EXPECT_EQ(read_file(folder / "x").size(), bytes.size());
  {
    FileWriter unfinished(folder / "y");
    unfinished.write("abc");
  }
  EXPECT_FALSE(fs::exists(folder / "y"));
}

}  // namespace
}  // namespace cairn::checkpoints
