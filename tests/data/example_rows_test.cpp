// labels: quick
// Examples: what is predicted, how they are packed, what is too long, where one was seen.
#include "trainer/data/example_rows.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "tests/data/fixture.h"
#include "trainer/data/show.h"

namespace cairn::data {
namespace {

struct Pair {
  std::string question, answer;
};

std::vector<Pair> random_pairs(int count, unsigned seed, int longest = 30) {
  std::mt19937 random(seed);
  std::vector<Pair> out;
  for (int i = 0; i < count; ++i)
    out.push_back({std::to_string(i) + std::string(random() % longest, 'q'), std::string(1 + random() % longest, 'a')});
  return out;
}

class ExamplesTest : public testing::Test {
 protected:
  StageData stage(const std::vector<Pair>& pairs, int64_t context, int64_t batch, int64_t steps) {
    std::string lines;
    for (const auto& pair : pairs) lines += nlohmann::json{{"q", pair.question}, {"a", pair.answer}}.dump() + "\n";
    StageData stage;
    stage.data.train = {
        {.name = "pairs", .jsonl = folder_.write("pairs.jsonl", lines), .prompt = "Q{q}=", .completion = "{a}"}};
    stage.data.context = context;
    stage.data.cache = folder_ / "cache";
    stage.data.threads = 2;
    stage.data.examples = true;
    stage.data.mask_documents = true;
    stage.batch = batch;
    stage.steps = steps;
    return stage;
  }
  Folder folder_;
};

TEST_F(ExamplesTest, AnEpochReadsEveryExampleOnceAndPredictsItsCompletionAlone) {
  const auto pairs = random_pairs(200, 3, 12);
  StageData plan = stage(pairs, 64, 4, 0);
  const Dataset counted({plan}, byte_encoding(), 7);
  const int64_t steps = counted.steps_of_epochs(1);
  std::map<std::string, int> seen;
  int64_t padding = 0, total = 0;
  for (int64_t step = 1; step <= steps; ++step) {
    const Batch batch = counted.batch(step);
    const int64_t rows = std::min<int64_t>(4, (counted.rows(step)));
    for (int64_t row = 0; row < rows; ++row) {
      std::string prompt, completion;
      for (int64_t t = 0; t < 64; ++t) {
        const int64_t i = row * 64 + t;
        const bool first = t == 0 || batch.segments[i] != batch.segments[i - 1];
        ++total;
        if (first) {
          EXPECT_EQ(batch.positions[i], 0);
          prompt.clear(), completion.clear();
        } else {
          EXPECT_EQ(batch.positions[i], batch.positions[i - 1] + 1);
        }
        if (batch.inputs[i] == 256 && batch.targets[i] == -1 && first) ++padding;
        if (completion.empty()) prompt += static_cast<char>(batch.inputs[i]);
        if (batch.targets[i] == -1) continue;
        if (batch.targets[i] == 256) {
          ++seen[prompt + "|" + completion];
        } else {
          completion += static_cast<char>(batch.targets[i]);
        }
      }
    }
  }
  ASSERT_LT(static_cast<double>(padding), 0.03 * static_cast<double>(total));
  // The last step of an epoch goes on into the next one.
  int more = 0;
  for (const auto& pair : pairs) {
    const int times = seen["Q" + pair.question + "=|" + pair.answer];
    EXPECT_GE(times, 1) << pair.question;
    more += times - 1;
  }
  EXPECT_EQ(seen.size(), pairs.size());
  EXPECT_LT(more, 40);
}

TEST_F(ExamplesTest, OverlongExamplesAreCutDroppedOrRefusedAsAsked) {
  std::vector<Pair> pairs = random_pairs(20, 4, 10);
  pairs.push_back({std::string(10, 'x'), std::string(40, 'y')});  // cut: a part of its answer is left
  pairs.push_back({std::string(60, 'x'), "z"});                   // cut: nothing of its answer is left
  StageData plan = stage(pairs, 32, 2, 0);
  const Dataset cut({plan}, byte_encoding(), 7);
  EXPECT_EQ(cut.source(0).overlong, 2);
  EXPECT_EQ(cut.source(0).silent, 1);
  EXPECT_EQ(cut.where(0, 20, 20).front().tokens, 32);
  EXPECT_TRUE(cut.where(0, 21, 20).empty());

  plan.data.overlong = "drop";
  const Dataset dropped({plan}, byte_encoding(), 7);
  EXPECT_EQ(dropped.source(0).overlong, 2);
  EXPECT_EQ(dropped.source(0).silent, 0);
  EXPECT_TRUE(dropped.where(0, 20, 20).empty());

  plan.data.overlong = "error";
  expect_error([&] { Dataset({plan}, byte_encoding(), 7); }, {"pairs", "example 20", "53 tokens", "32"});
}

TEST_F(ExamplesTest, SlicesPlacesAndTextsAgree) {
  const auto pairs = random_pairs(60, 5);
  const Dataset data({stage(pairs, 64, 6, 12)}, byte_encoding(), 7);
  for (int64_t step : {1, 5, 12}) {
    const Batch whole = data.batch(step), part = data.batch_rows(step, 2, 3);
    EXPECT_TRUE(std::equal(part.inputs.begin(), part.inputs.end(), whole.inputs.begin() + 2 * 64));
    EXPECT_TRUE(std::equal(part.targets.begin(), part.targets.end(), whole.targets.begin() + 2 * 64));
    for (int64_t row = 0; row < whole.rows; ++row) {
      for (const auto& piece : data.pieces(whole.provenance[row], 64)) {
        const auto& pair = pairs.at(piece.document);
        EXPECT_EQ(data.document_text(0, piece.document), "Q" + pair.question + "=" + pair.answer + "|");
        const auto places = data.where(0, piece.document, 12);
        EXPECT_TRUE(std::any_of(places.begin(), places.end(),
                                [&](const Sighting& s) { return s.step == step && s.row == row; }));
      }
    }
  }
}

TEST_F(ExamplesTest, HeldOutExamplesAreNeverTrainedOn) {
  StageData plan = stage(random_pairs(300, 6), 64, 4, 40);
  plan.data.validation_fraction = 0.2;
  const Dataset data({plan}, byte_encoding(), 7);
  ASSERT_EQ(data.validation_names(), std::vector<std::string>{"validation"});
  std::set<int64_t> held;
  const int64_t rows = data.validation_sequences("validation");
  const Batch batch = data.validation_rows("validation", 0, rows);
  EXPECT_GT(batch.target_count(), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (const auto& piece : data.pieces(batch.provenance[row], 64)) EXPECT_GE(piece.document, 0);
    held.insert(batch.provenance[row].document);
  }
  for (int64_t step = 1; step <= 40; ++step) {
    const Batch trained = data.batch(step);
    for (const auto& row : trained.provenance) {
      for (const auto& piece : data.pieces(row, 64)) EXPECT_FALSE(held.contains(piece.document));
    }
  }
}

TEST_F(ExamplesTest, WhatMakesNoExampleIsRefusedWithItsLine) {
  const auto refused = [&](const std::string& line, const std::vector<std::string>& words) {
    StageData plan = stage(random_pairs(3, 1), 64, 2, 0);
    plan.data.train[0].jsonl = folder_.write("bad.jsonl", "{\"q\": \"1\", \"a\": \"2\"}\n" + line + "\n");
    expect_error([&] { Dataset({plan}, byte_encoding(), 7); }, words);
  };
  refused(R"({"q": "1"})", {"bad.jsonl", "line 2", "a"});
  refused(R"({"q": "1", "a": ""})", {"line 2", "empty"});
  refused(R"({"q": ["1"], "a": "x"})", {"line 2", "'q'", "list"});
  refused(R"([1])", {"line 2", "object"});
  refused(R"({"q": )", {"line 2", "not JSON"});
  StageData plan = stage({{std::string(100, 'x'), "y"}}, 32, 2, 0);
  expect_error([&] { Dataset({plan}, byte_encoding(), 7); }, {"pairs", "none of its 1 examples", "32"});
  plan = stage(random_pairs(3, 1), 64, 2, 0);
  plan.data.train[0].completion = "";
  expect_error([&] { Dataset({plan}, byte_encoding(), 7); }, {"pairs", "completion"});
}

}  // namespace
}  // namespace cairn::data
