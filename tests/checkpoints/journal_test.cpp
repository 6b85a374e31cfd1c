// labels: quick
// The journal: what is appended comes back, torn and changed lines are seen, truncation, speed.
#include "checkpoints/journal.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "checkpoints/crc32c.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

ordered_json line(int64_t step) {
  return {{"loss", 1.0 / (step + 3)},
          {"step", step},
          {"digest", fmt::format("{:032x}", step * 77)},
          {"note", "größe \"\\\n"}};
}

TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);  // the check value of the polynomial
  EXPECT_EQ(crc32c("", 0), 0u);
  const std::string zeros(32, '\0'), ones(32, '\xff');
  EXPECT_EQ(crc32c(zeros.data(), 32), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(ones.data(), 32), 0x62A8AB43u);
  EXPECT_EQ(crc32c("6789", 4, crc32c("12345", 5)), 0xE3069283u);
}

TEST(Journal, WhatIsAppendedComesBack) {
  const TemporaryFolder folder;
  const fs::path path = folder / "journal.jsonl";
  EXPECT_TRUE(index_journal(path).lines.empty()) << "a missing file is an empty journal";
  {
    Journal journal(path);
    EXPECT_EQ(journal.last_step(), INT64_MIN);
    for (int64_t step = 1; step <= 5; ++step) journal.append(line(step));
    journal.append({{"step", 5}, {"event", "checkpoint"}, {"nan", std::nan("")}});
    EXPECT_EQ(read_journal(path).size(), 6u) << "flushed each line";
    journal.sync();
    EXPECT_EQ(journal.last_step(), 5);
  }
  Journal journal(path);
  EXPECT_EQ(journal.last_step(), 5);
  journal.append(line(7));
  const auto lines = read_journal(path);
  ASSERT_EQ(lines.size(), 7u);
  EXPECT_EQ(lines[2].begin().key(), "step");
  EXPECT_EQ(ordered_json(lines[2])["loss"].get<double>(), 1.0 / 6);  // doubles come back to the bit
  EXPECT_EQ(lines[2]["note"], line(3)["note"]);
  EXPECT_FALSE(lines[2].contains("crc"));
  EXPECT_TRUE(lines[5]["nan"].is_null());
  EXPECT_EQ(read_journal(path, 2, 3).size(), 2u);
  EXPECT_EQ(read_journal(path, 5, 5).size(), 2u);
  const auto index = index_journal(path);
  EXPECT_EQ(index.lines.back().step, 7);
  EXPECT_EQ(index.bytes, fs::file_size(path));
  const auto third = index.lines[2];
  EXPECT_EQ(ordered_json::parse(slurp(path).substr(third.offset, third.length))["step"], 3);
}

TEST(Journal, RefusesLinesThatBreakItsRules) {
  const TemporaryFolder folder;
  Journal journal(folder / "journal.jsonl");
  journal.append(line(5));
  for (const ordered_json& bad :
       {ordered_json(3), ordered_json::object(), ordered_json{{"step", "1"}}, ordered_json{{"step", 1.5}},
        ordered_json{{"step", 6}, {"crc", "0"}}, ordered_json{{"step", 4}}})
    EXPECT_THROW(journal.append(bad), std::invalid_argument) << bad;
  EXPECT_SAYS(message_of([&] { journal.append(line(4)); }), "step 4 after step 5", "journal.jsonl");
  EXPECT_EQ(read_journal(folder / "journal.jsonl").size(), 1u);
  EXPECT_SAYS(message_of([&] { Journal(folder / "no/journal.jsonl"); }), "no/journal.jsonl");
}

TEST(Journal, TornEndsAreDroppedAtEveryByte) {
  const TemporaryFolder folder;
  const fs::path path = folder / "journal.jsonl";
  {
    Journal journal(path);
    for (int64_t step = 1; step <= 3; ++step) journal.append(line(step));
  }
  const std::string whole = slurp(path);
  const auto index = index_journal(path);
  for (uint64_t n = index.lines[1].offset; n < whole.size(); ++n) {
    const fs::path cut = folder / fmt::format("cut{}", n);
    spill(cut, whole.substr(0, n));
    const size_t expected = n >= index.lines[2].offset ? 2 : 1;
    ASSERT_EQ(read_journal(cut).size(), expected) << n;
    EXPECT_EQ(index_journal(cut).torn, n != index.lines[expected].offset) << n;
    if (n % 7 == 0) {
      Journal journal(cut);
      journal.append(line(9));
      EXPECT_EQ(slurp(cut).substr(0, index.lines[expected].offset), whole.substr(0, index.lines[expected].offset));
      EXPECT_EQ(read_journal(cut).back()["step"], 9);
      EXPECT_EQ(read_journal(cut).size(), expected + 1);
    }
    fs::remove(cut);
  }
  spill(path, whole + std::string(4096, '\0'));  // what a power cut leaves on some file systems
  EXPECT_EQ(read_journal(path).size(), 3u);
  EXPECT_EQ(Journal(path).last_step(), 3);
  EXPECT_EQ(slurp(path), whole);
}

TEST(Journal, EveryFlippedBitIsFoundAndLocated) {
  const TemporaryFolder folder;
  const fs::path path = folder / "journal.jsonl";
  {
    Journal journal(path);
    for (int64_t step = 1; step <= 4; ++step) journal.append(line(step));
  }
  const std::string whole = slurp(path);
  const auto second = index_journal(path).lines[1];
  for (uint64_t bit = 8 * second.offset; bit < 8 * (second.offset + second.length); ++bit) {
    std::string changed = whole;
    changed[bit / 8] ^= 1 << bit % 8;
    const fs::path bad = folder / "bad";
    fs::remove(bad);
    spill(bad, changed);
    EXPECT_SAYS(message_of([&] { index_journal(bad); }), "bad: line 2", fmt::format("offset {}", second.offset));
    if (bit % 50 == 0) {
      EXPECT_ANY_THROW(Journal{bad});
      EXPECT_EQ(Journal(bad, 1).last_step(), 1) << "going on from step 1 needs no later line";
      EXPECT_EQ(slurp(bad), whole.substr(0, second.offset));
    }
  }
  std::string joined = whole;  // the newline itself
  joined[second.offset + second.length] = ' ';
  spill(path, joined);
  EXPECT_SAYS(message_of([&] { index_journal(path); }), "line 2");
}

TEST(Journal, TruncateAfter) {
  const TemporaryFolder folder;
  const fs::path path = folder / "journal.jsonl";
  Journal journal(path);
  for (int64_t step = 0; step < 20; ++step) journal.append(line(step));
  const std::string whole = slurp(path);
  journal.truncate_after(30);
  EXPECT_EQ(slurp(path), whole);
  journal.truncate_after(9);
  EXPECT_EQ(journal.last_step(), 9);
  EXPECT_EQ(read_journal(path).size(), 10u);
  journal.append(line(10));  // goes to the new file
  EXPECT_EQ(read_journal(path).back()["step"], 10);
  EXPECT_EQ(slurp(path), whole.substr(0, slurp(path).size()));
  journal.truncate_after(-1);
  EXPECT_EQ(journal.last_step(), INT64_MIN);
  EXPECT_EQ(fs::file_size(path), 0u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 1);
  journal.append(line(0));
  EXPECT_EQ(read_journal(path).size(), 1u);
}

TEST(Journal, HundredThousandLinesAreIndexedFast) {
  const TemporaryFolder folder;
  const fs::path path = folder / "journal.jsonl";
  {
    Journal journal(path);
    ordered_json entry = {{"step", 0},
                          {"tokens", 1234567},
                          {"loss", 3.14159265358979},
                          {"grad_norm", 0.123456789},
                          {"lr", 3.0e-4},
                          {"digest", std::string(32, 'a')},
                          {"seconds", 0.51234},
                          {"batch", {{"seed", 1234}}}};
    for (int64_t step = 0; step < 100'000; ++step) {
      entry["step"] = step;
      journal.append(entry);
    }
  }
  double best = 1e9;
  for (int k = 0; k < 3; ++k) {
    const auto start = std::chrono::steady_clock::now();
    const auto index = index_journal(path);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    ASSERT_EQ(index.lines.size(), 100'000u);
    EXPECT_EQ(index.lines.back().step, 99'999);
  }
  std::printf("100,000 lines, %.1f MB: %.3f s\n", fs::file_size(path) / 1e6, best);
  EXPECT_LT(best, 0.3);
}

}  // namespace
}  // namespace cairn::checkpoints
