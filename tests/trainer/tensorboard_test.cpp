// labels: quick
// TensorBoard event files: the framing and the bytes of the messages. The official reader reads them in
// tests/oracles/tensorboard_test.py, through the disabled test at the end.
#include "trainer/metrics/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "checkpoints/crc32c.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "cairn-tensorboard-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
};

uint32_t masked(const char* data, size_t n) { return std::rotr(checkpoints::crc32c(data, n), 15) + 0xA282EAD8u; }

// The records of a file; checks the framing of each.
std::vector<std::string> records(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  std::vector<std::string> found;
  for (size_t at = 0; at < text.size();) {
    uint64_t size = 0;
    uint32_t head = 0, tail = 0;
    EXPECT_LE(at + 12, text.size());
    std::memcpy(&size, text.data() + at, 8);
    std::memcpy(&head, text.data() + at + 8, 4);
    EXPECT_EQ(head, masked(text.data() + at, 8));
    if (at + 16 + size > text.size()) {
      ADD_FAILURE() << "a torn record at " << at;
      break;
    }
    std::memcpy(&tail, text.data() + at + 12 + size, 4);
    EXPECT_EQ(tail, masked(text.data() + at + 12, size));
    found.push_back(text.substr(at + 12, size));
    at += 16 + size;
  }
  return found;
}

TEST(TensorBoard, FramesAndBytes) {
  const Folder folder;
  TensorBoardWriter writer(folder.path / "logs");
  EXPECT_EQ(records(writer.path()).size(), 2u) << "version and session start are there at once";
  writer.scalar("loss", 1.5, 300);
  EXPECT_EQ(records(writer.path()).size(), 2u) << "gathered until the flush";
  writer.flush();
  const auto found = records(writer.path());
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].substr(9),
            "\x1a\x0d"
            "brain.Event:2");
  // step 300; summary { value { tag: "loss" simple_value: 1.5 } }
  EXPECT_EQ(found[1].substr(9), "\x3a\x02\x08\x01");  // session_log { status: START }, step 0
  EXPECT_EQ(found[2].substr(9), std::string("\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\xc0\x3f", 18));
  for (int k = 0; k < 5000; ++k) writer.scalar("loss", k, 301 + k);
  EXPECT_GT(records(writer.path()).size(), 1000u) << "a long run does not wait for a flush";
}

TEST(TensorBoard, EachFileSortsAfterTheOnesBefore) {
  const Folder folder;
  std::vector<std::string> names;
  for (int k = 0; k < 4; ++k) names.push_back(TensorBoardWriter(folder.path).path().filename());
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  std::ofstream(folder.path / "events.out.tfevents.4000000000.other.1") << "";  // a clock that went back
  EXPECT_GT(TensorBoardWriter(folder.path).path().filename().string(), "events.out.tfevents.4000000000.other.1");
}

TEST(TensorBoard, AnUnusableFolderIsNamed) {
  const Folder folder;
  std::ofstream(folder.path / "file") << "";
  try {
    TensorBoardWriter(folder.path / "file/logs");
    FAIL();
  } catch (const std::runtime_error& e) {
    EXPECT_NE(std::string(e.what()).find("file/logs"), std::string::npos) << e.what();
  }
}

// A run of 20 steps that is resumed after step 10, for the official reader.
TEST(TensorBoardExchange, DISABLED_Write) {
  const char* folder = std::getenv("CAIRN_EXCHANGE");
  ASSERT_NE(folder, nullptr) << "CAIRN_EXCHANGE names the folder";
  {
    TensorBoardWriter writer(folder);
    for (int64_t step = 1; step <= 20; ++step) writer.scalar("train/loss", 1.0 / step, step);
    writer.scalar("odd/größe", -std::numeric_limits<double>::infinity(), 0);
    writer.scalar("odd/nan", std::nan(""), 5);
    writer.scalar("big/step", 1e-30, int64_t{1} << 40);
    writer.text("sample", "*früh* sample\n\nwith two paragraphs", 7);
    writer.text("sample", "late sample", 18);
  }
  TensorBoardWriter moved(folder, 11);
  TensorBoardWriter writer = std::move(moved);
  for (int64_t step = 11; step <= 15; ++step) writer.scalar("train/loss", 100.0 + step, step);
}

}  // namespace
}  // namespace cairn
