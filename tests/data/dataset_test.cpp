// labels: quick
// Batches: packing, masks, order, slices, stages, validation, where a document was seen, changed data.
#include "trainer/data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "tests/data/fixture.h"
#include "trainer/data/documents.h"
#include "trainer/data/foldoc.h"
#include "trainer/data/prepare.h"
#include "trainer/data/show.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {

std::vector<std::string> random_documents(int count, unsigned seed, int longest = 60) {
  std::mt19937 random(seed);
  std::vector<std::string> out;
  for (int i = 0; i < count; ++i) {
    std::string text = std::to_string(i) + ":";
    text.append(random() % longest, static_cast<char>('a' + random() % 26));
    out.push_back(text);
  }
  return out;
}

std::string as_jsonl(const std::vector<std::string>& documents) {
  std::string lines;
  for (const auto& text : documents) lines += nlohmann::json{{"text", text}}.dump() + "\n";
  return lines;
}

std::vector<int32_t> as_tokens(const std::vector<std::string>& documents) {
  std::vector<int32_t> ids;
  for (const auto& text : documents) {
    for (const unsigned char c : text) ids.push_back(c);
    ids.push_back(256);
  }
  return ids;
}

class DatasetTest : public testing::Test {
 protected:
  StageData stage(std::vector<SourceOptions> train, int64_t context, int64_t batch, int64_t steps) {
    StageData stage;
    stage.data.train = std::move(train);
    stage.data.context = context;
    stage.data.cache = folder_ / "cache";
    stage.data.threads = 2;
    stage.batch = batch;
    stage.steps = steps;
    return stage;
  }
  SourceOptions source(const std::string& name, const std::vector<std::string>& documents, double weight = 1) {
    auto source = jsonl_source(folder_.write(name + ".jsonl", as_jsonl(documents)));
    source.weight = weight;
    return source;
  }
  Dataset open(std::vector<StageData> stages, uint64_t seed = 1) {
    return Dataset(std::move(stages), byte_encoding(), seed);
  }
  Folder folder_;
};

void expect_equal(const Batch& a, const Batch& b, int64_t row_a, int64_t row_b) {
  const int64_t T = a.context;
  for (const auto field : {&Batch::inputs, &Batch::targets, &Batch::positions, &Batch::segments}) {
    EXPECT_TRUE(std::equal((a.*field).begin() + row_a * T, (a.*field).begin() + (row_a + 1) * T,
                           (b.*field).begin() + row_b * T));
  }
  EXPECT_EQ(a.provenance[row_a].window, b.provenance[row_b].window);
  EXPECT_EQ(a.provenance[row_a].document, b.provenance[row_b].document);
}

TEST_F(DatasetTest, AnEpochIsTheWholeStreamOnce) {
  const auto documents = random_documents(100, 1);
  const auto stream = as_tokens(documents);
  const int64_t T = 16, windows = (static_cast<int64_t>(stream.size()) - 1) / T;
  const auto data = open({stage({source("a", documents)}, T, 4, 0)});
  EXPECT_EQ(data.source(0).tokens, static_cast<int64_t>(stream.size()));
  EXPECT_EQ(data.source(0).documents, 100);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t draw = epoch * windows; draw < (epoch + 1) * windows; ++draw) {
      const auto row = data.batch_rows(1 + draw / 4, draw % 4, 1);
      const auto& from = row.provenance[0];
      EXPECT_EQ(from.epoch, epoch);
      EXPECT_TRUE(seen.insert(from.window).second);
      for (int64_t t = 0; t < T; ++t) {
        ASSERT_EQ(row.inputs[t], stream[from.window * T + t]);
        ASSERT_EQ(row.targets[t], stream[from.window * T + t + 1]);
        ASSERT_EQ(row.positions[t], t);
        ASSERT_EQ(row.segments[t], 0);
      }
      EXPECT_EQ(row.target_count(), T);
      const auto document = data.document_ids(0, from.document);
      EXPECT_EQ(document[from.offset], row.inputs[0]);
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), windows);
  }
}

TEST_F(DatasetTest, BatchesDoNotDependOnCallsSlicesOrThreads) {
  const std::vector<StageData> stages = {
      stage({source("a", random_documents(80, 2), 0.7), source("b", random_documents(50, 3), 0.3)}, 24, 8, 30),
      stage({source("b", random_documents(50, 3))}, 24, 4, 10)};
  const auto data = open(stages);
  const auto again = open(stages);
  std::vector<Batch> forward;
  for (int64_t step = 1; step <= data.steps(); ++step) forward.push_back(data.batch(step));
  for (int64_t step = again.steps(); step >= 1; --step) {
    const auto batch = again.batch(step);
    ASSERT_EQ(batch.inputs, forward[step - 1].inputs);
    const auto half = again.batch_rows(step, batch.rows / 2, batch.rows / 2);
    for (int64_t row = 0; row < half.rows; ++row) expect_equal(half, batch, row, row + batch.rows / 2);
  }
  std::vector<std::thread> threads;
  std::atomic<int> different{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t step = 1 + t; step <= data.steps(); step += 2)
        different += data.batch(step).targets != forward[step - 1].targets;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
  EXPECT_NE(open(stages, 2).batch(1).inputs, forward[0].inputs);
  EXPECT_EQ(data.rows(31), 4);
  EXPECT_EQ(data.stage(30), 0);
  EXPECT_EQ(data.stage(31), 1);
  EXPECT_EQ(data.tokens_before(1), 0);
  EXPECT_EQ(data.tokens_before(32), 30 * 8 * 24 + 4 * 24);
  expect_error([&] { data.batch(41); }, {"step 41", "1 to 40"});
  expect_error([&] { data.batch_rows(1, 7, 2); }, {"rows 7 to 9", "step 1", "has 8"});
}

TEST_F(DatasetTest, MixturesFollowTheWeightsAndStagesGoOn) {
  const auto a = random_documents(300, 4), b = random_documents(200, 5);
  const auto data = open({stage({source("a", a, 3), source("b", b, 1)}, 32, 5, 13),
                          stage({source("b", b, 2), source("a", a, 1)}, 32, 3, 17), stage({source("b", b)}, 32, 7, 5)});
  std::map<int32_t, std::map<int64_t, std::set<int64_t>>> seen;
  std::map<int32_t, int64_t> counts;
  for (int64_t step = 1; step <= data.steps(); ++step) {
    for (const auto& from : data.batch(step).provenance) {
      EXPECT_TRUE(seen[from.source][from.epoch].insert(from.window).second);
      ++counts[from.source];
    }
    if (step == 13) {
      EXPECT_NEAR(counts[0], 65 * 0.75, 1);
    }
  }
  EXPECT_NEAR(counts[0], 65 * 0.75 + 51 / 3.0, 2);
  for (int32_t s = 0; s < 2; ++s) {  // epochs are full before the next begins
    const int64_t windows = (data.source(s).tokens - 1) / 32;
    for (const auto& [epoch, set] : seen[s]) {
      if (seen[s].count(epoch + 1) > 0) {
        EXPECT_EQ(static_cast<int64_t>(set.size()), windows);
      }
    }
  }
}

TEST_F(DatasetTest, AnotherContextBeginsTheNextEpoch) {
  const auto a = random_documents(100, 6);
  const auto data = open({stage({source("a", a)}, 16, 2, 10), stage({source("a", a)}, 40, 2, 10)});
  EXPECT_EQ(data.batch(10).context, 16);
  EXPECT_EQ(data.batch(10).provenance[1].epoch, 0);
  EXPECT_EQ(data.batch(11).context, 40);
  EXPECT_EQ(data.batch(11).provenance[0].epoch, 1);
}

TEST_F(DatasetTest, MasksPartTheDocumentsOfARow) {
  const auto documents = random_documents(200, 7, 30);
  const auto stream = as_tokens(documents);
  const int64_t T = 32;
  auto masked = stage({source("a", documents)}, T, 6, 20);
  masked.data.mask_documents = true;
  const auto data = open({masked});
  int64_t boundaries = 0, at_the_end = 0;
  for (int64_t step = 1; step <= 20; ++step) {
    const auto batch = data.batch(step);
    for (int64_t row = 0; row < batch.rows; ++row) {
      const int64_t begin = batch.provenance[row].window * T;
      int32_t position = 0, segment = 0;
      for (int64_t t = 0; t < T; ++t, ++position) {
        const int64_t i = row * T + t;
        if (t > 0 && batch.inputs[i - 1] == 256) {
          position = 0;
          ++segment;
        }
        ASSERT_EQ(batch.positions[i], position);
        ASSERT_EQ(batch.segments[i], segment);
        ASSERT_EQ(batch.inputs[i], stream[begin + t]);
        ASSERT_EQ(batch.targets[i], batch.inputs[i] == 256 ? -1 : stream[begin + t + 1]);
        boundaries += batch.targets[i] < 0;
        at_the_end += t == T - 1 && batch.targets[i] < 0;
      }
    }
    EXPECT_EQ(batch.target_count(),
              std::count_if(batch.targets.begin(), batch.targets.end(), [](int t) { return t != -1; }));
  }
  EXPECT_GT(boundaries, 100);
  EXPECT_GT(at_the_end, 0);
}

TEST_F(DatasetTest, TheSplitGoesByDocument) {
  const auto documents = random_documents(400, 8);
  auto split = stage({source("a", documents)}, 16, 4, 0);
  split.data.validation_fraction = 0.1;
  const auto data = open({split});
  std::vector<std::string> train, held;
  for (const auto& text : documents) (held_out(document_hash(text), 0.1) ? held : train).push_back(text);
  ASSERT_EQ(data.validation_names(), std::vector<std::string>{"validation"});
  EXPECT_EQ(data.source(0).train_documents, static_cast<int64_t>(train.size()));
  const auto train_stream = as_tokens(train), held_stream = as_tokens(held);
  EXPECT_EQ(data.source(0).train_tokens, static_cast<int64_t>(train_stream.size()));
  const int64_t T = 16, windows = (static_cast<int64_t>(train_stream.size()) - 1) / T;
  for (int64_t draw = 0; draw < windows; ++draw) {
    const auto row = data.batch_rows(1 + draw / 4, draw % 4, 1);
    for (int64_t t = 0; t < T; ++t) ASSERT_EQ(row.targets[t], train_stream[row.provenance[0].window * T + t + 1]);
    EXPECT_EQ(data.document_ids(0, row.provenance[0].document)[row.provenance[0].offset], row.inputs[0]);
  }
  // Every held-out token but the first is predicted once.
  const int64_t sequences = data.validation_sequences("validation");
  const auto rows = data.validation_rows("validation", 0, sequences);
  EXPECT_EQ(rows.target_count(), static_cast<int64_t>(held_stream.size()) - 1);
  std::set<int64_t> seen;
  for (int64_t row = 0; row < sequences; ++row) {
    const int64_t window = rows.provenance[row].window;
    EXPECT_EQ(rows.provenance[row].epoch, -1);
    EXPECT_TRUE(seen.insert(window).second);
    for (int64_t t = 0; t < T; ++t) {
      const size_t next = window * T + t + 1;
      ASSERT_EQ(rows.targets[row * T + t], next < held_stream.size() ? held_stream[next] : -1);
    }
  }
  EXPECT_EQ(data.validation_sequences("validation", 64), (static_cast<int64_t>(held_stream.size()) - 1 + 63) / 64);
  // The order is the same for another seed and in slices.
  auto same = open({split}, 99);
  const auto slice = same.validation_rows("validation", 2, 3);
  for (int64_t row = 0; row < 3; ++row) expect_equal(slice, rows, row, row + 2);
  expect_error([&] { data.validation_rows("validation", 0, sequences + 1); }, {"'validation'"});
  expect_error([&] { data.validation_sequences("web"); }, {"no validation set 'web'", "validation"});
}

TEST_F(DatasetTest, NamedSetsStandBesideTheSplit) {
  auto one = stage({source("a", random_documents(200, 9)), source("b", random_documents(200, 10))}, 16, 4, 5);
  one.data.validation_fraction = 0.1;
  one.data.validation = {source("held", random_documents(30, 11))};
  auto two = one;
  two.data.context = 48;
  two.data.validation.push_back(source("more", random_documents(30, 12)));
  const auto data = open({one, two});
  EXPECT_EQ(data.validation_names(), (std::vector<std::string>{"validation/a", "validation/b", "held", "more"}));
  EXPECT_GT(data.validation_sequences("more"), data.validation_sequences("more", 48));
  EXPECT_EQ(data.validation_rows("held", 0, 2, 48).context, 48);
  EXPECT_EQ(data.source(data.source_index("held")).documents, 30);
  auto other = one;
  other.data.validation_fraction = 0.2;
  expect_error([&] { open({one, other}); }, {"stage 2", "validation_fraction: 0.2", "must not change"});
  one.data.validation.push_back(source("held", random_documents(31, 11)));
  expect_error([&] { open({one}); }, {"two validation sets", "'held'"});
}

TEST_F(DatasetTest, OfOneDocumentTheEndIsHeldOut) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += std::to_string(i) + " ";
  auto one = stage({source("a", {text})}, 8, 4, 50);
  one.data.validation_fraction = 0.02;
  const auto data = open({one});
  const auto& info = data.source(0);
  const int64_t out = static_cast<int64_t>(0.02 * static_cast<double>(info.tokens));
  ASSERT_FALSE(held_out(document_hash(text), 0.02));
  EXPECT_EQ(info.train_tokens, info.tokens - out);
  EXPECT_EQ(data.validation_sequences("validation"), (out - 1 + 7) / 8);
  // Both sides together are the document, none of it twice.
  const auto ids = data.document_ids(0, 0);
  std::vector<int> seen(ids.size());
  const auto mark = [&](const Batch& batch) {
    for (int64_t row = 0; row < batch.rows; ++row) {
      const auto& from = batch.provenance[row];
      for (int64_t i = 0; i < batch.context && batch.targets[row * batch.context + i] >= 0; ++i) {
        EXPECT_EQ(batch.inputs[row * batch.context + i], ids[from.offset + i]);
        ++seen[from.offset + i];
      }
    }
  };
  mark(data.validation_rows("validation", 0, data.validation_sequences("validation")));
  EXPECT_EQ(std::count(seen.begin(), seen.begin() + info.train_tokens, 0), info.train_tokens);
  EXPECT_EQ(std::count(seen.begin() + info.train_tokens, seen.end(), 1), out - 1);  // the last is a target alone
  std::fill(seen.begin(), seen.end(), 0);
  for (int64_t step = 1; step <= 50; ++step) mark(data.batch(step));
  EXPECT_EQ(std::count(seen.begin() + info.train_tokens, seen.end(), 0), out);
  for (const auto& sighting : data.where(0, 0, 50)) EXPECT_LE(sighting.offset + sighting.tokens, info.train_tokens);
}

TEST_F(DatasetTest, TextThatIsTooShortIsRefused) {
  expect_error([&] { open({stage({source("a", {"abc"})}, 4, 1, 1)}); },
               {"'a'", "a.jsonl", "4 tokens", "context 4 needs 5"});
  EXPECT_NO_THROW(open({stage({source("a", {"abcd"})}, 4, 1, 1)}));
  auto tiny = stage({source("a", {"one document of some length"})}, 4, 1, 1);
  tiny.data.validation_fraction = 1e-6;
  expect_error([&] { open({tiny}); }, {"validation_fraction: 1e-06", "holds out none of its 1 documents"});
  tiny.data.validation_fraction = 1 - 1e-9;
  expect_error([&] { open({tiny}); }, {"0 tokens for training", "after validation_fraction"});
  tiny.data.validation_fraction = 1;
  expect_error([&] { open({tiny}); }, {"validation_fraction: 1 is not in [0, 1)"});
  expect_error([&] { open({stage({}, 4, 1, 1)}); }, {"train names no source"});
  expect_error([&] { open({stage({source("a", {"abcdefg"}), source("a", {"abcdefg"})}, 4, 1, 1)}); }, {"'a'", "twice"});
  auto other = text_source(folder_.write("sub/a.txt", "another text of this name"));
  expect_error(
      [&] {
        open({stage({source("a", {"abcdefg"}), other}, 4, 1, 1)});
      },
      {"'a' is", "sub/a.txt", "another `name`"});
}

TEST_F(DatasetTest, IdsBeyondTheVocabularyAreRefusedAtTheStart) {
  std::vector<uint16_t> ids(100, 5);
  ids[40] = 257;
  const auto shards = shard_source(folder_.write("x.bin", raw(ids)), "uint16");
  expect_error([&] { open({stage({shards}, 16, 1, 1)}); },
               {"x.bin: token 40 (byte 80)", "the id is 257", "257 entries"});
}

TEST_F(DatasetTest, WhereNamesEveryRowThatReadADocument) {
  const auto a = random_documents(60, 13), b = random_documents(30, 14);
  auto first = stage({source("a", a, 2), source("b", b, 1)}, 20, 3, 15), second = stage({source("a", a)}, 28, 4, 0);
  first.data.validation_fraction = second.data.validation_fraction = 0.15;
  const auto data = open({first, second});
  const int64_t last = 60;
  std::map<std::pair<int32_t, int64_t>, std::set<std::array<int64_t, 4>>> expected;
  for (int64_t step = 1; step <= last; ++step) {
    const auto batch = data.batch(step);
    for (int64_t row = 0; row < batch.rows; ++row) {
      const auto& from = batch.provenance[row];
      int64_t at = row * batch.context;
      for (const auto& piece : data.pieces(from, batch.context)) {
        const auto ids = data.document_ids(from.source, piece.document);
        for (int64_t t = 0; t < piece.tokens; ++t) ASSERT_EQ(ids[piece.offset + t], batch.inputs[at++]);
        expected[{from.source, piece.document}].insert({step, row, piece.offset, piece.tokens});
      }
    }
  }
  for (int32_t s = 0; s < 2; ++s) {
    for (int64_t d = 0; d < data.source(s).documents; ++d) {
      std::set<std::array<int64_t, 4>> found;
      for (const auto& at : data.where(s, d, last)) found.insert({at.step, at.row, at.offset, at.tokens});
      EXPECT_EQ(found, (expected[{s, d}])) << s << " " << d;
      if (held_out(document_hash((s == 0 ? a : b)[d]), 0.15)) {
        EXPECT_TRUE(found.empty());
      }
    }
  }
  expect_error([&] { data.where(0, 0); }, {"no end"});
  expect_error([&] { data.where(0, 60, 5); }, {"document 60", "0 to 59"});
}

TEST_F(DatasetTest, ShowAndWhereArePrinted) {
  const auto a = random_documents(40, 15);
  const auto data = open({stage({source("a", a)}, 20, 2, 10)});
  const auto shown = show(data, 3, true);
  ASSERT_EQ(shown["sequences"].size(), 2u);
  const auto batch = data.batch(3);
  const auto& sequence = shown["sequences"][1];
  EXPECT_EQ(sequence["ids"].get<std::vector<int32_t>>(),
            std::vector<int32_t>(batch.inputs.begin() + 20, batch.inputs.end()));
  EXPECT_EQ(sequence["window"], batch.provenance[1].window);
  const std::string id = sequence["documents"][0]["id"];
  EXPECT_EQ(id, "a:" + std::to_string(batch.provenance[1].document));
  EXPECT_NE(show_text(shown).find(id), std::string::npos);
  EXPECT_NE(show_text(shown).find(sequence["text"].get<std::string>()), std::string::npos);
  const auto places = where(data, id);
  EXPECT_TRUE(std::any_of(places["seen"].begin(), places["seen"].end(),
                          [](const auto& at) { return at["step"] == 3 && at["row"] == 1; }));
  EXPECT_EQ(where(data, id.substr(2)), places);
  EXPECT_EQ(data.document_text(0, 7), a[7] + "|");
  expect_error([&] { where(data, "a:x"); }, {"'a:x'", "SOURCE:NUMBER"});
  expect_error([&] { where(data, "web:1"); }, {"no data source 'web'", "a"});
}

TEST_F(DatasetTest, PreparedShardsGiveTheSameRun) {
  const auto a = random_documents(300, 16);
  auto from_text = stage({source("a", a)}, 20, 4, 10);
  from_text.data.validation_fraction = 0.1;
  prepare(from_text.data.train, byte_encoding(), folder_ / "shards/a");
  auto from_shards = from_text;
  from_shards.data.train = {shard_source(folder_ / "shards/a")};
  const auto text = open({from_text}), shards = open({from_shards});
  EXPECT_EQ(text.source(0).digest, shards.source(0).digest);
  for (int64_t step = 1; step <= 10; ++step) EXPECT_EQ(text.batch(step).inputs, shards.batch(step).inputs);
  EXPECT_EQ(text.validation_rows("validation", 0, 3).inputs, shards.validation_rows("validation", 0, 3).inputs);
}

TEST_F(DatasetTest, ChangedDataIsFound) {
  auto documents = random_documents(50, 17);
  const auto one = stage({source("a", documents)}, 20, 4, 10);
  const auto before = open({one});
  EXPECT_NO_THROW(before.verify());
  const auto time = std::filesystem::last_write_time(folder_ / "a.jsonl");
  documents[3][0] = documents[3][0] == '9' ? '8' : '9';
  folder_.write("a.jsonl", as_jsonl(documents));
  EXPECT_NE(open({one}).source(0).digest, before.source(0).digest);
  // The same path, size and time: only a full look finds it.
  folder_.write("a.jsonl", as_jsonl(random_documents(50, 17)));
  std::filesystem::last_write_time(folder_ / "a.jsonl", time);
  EXPECT_EQ(open({one}).source(0).digest, before.source(0).digest);
  folder_.write("a.jsonl", as_jsonl(documents));
  std::filesystem::last_write_time(folder_ / "a.jsonl", time);
  const auto fooled = open({one});
  EXPECT_EQ(fooled.source(0).digest, before.source(0).digest);
  expect_error([&] { fooled.verify(); }, {"'a'", "a.jsonl", "was changed"});
}

TEST_F(DatasetTest, FoldocTrainsTheQuickstart) {
  if (!std::filesystem::exists(std::string(kFoldocFolder) + "/foldoc.index"))
    GTEST_SKIP() << "dict-foldoc is not installed";
  auto one = stage({text_source("foldoc")}, 256, 32, 1000);
  one.data.validation_fraction = 0.02;
  { const Dataset warm({one}, Tokenizer::bytes(), 1234); }
  const auto start = std::chrono::steady_clock::now();
  const Dataset data({one}, Tokenizer::bytes(), 1234);
  const std::chrono::duration<double> opened = std::chrono::steady_clock::now() - start;
  EXPECT_LT(opened.count(), 0.2);
  RecordProperty("open_ms", static_cast<int>(opened.count() * 1000));
  EXPECT_EQ(data.source(0).name, "foldoc");
  EXPECT_GT(data.source(0).tokens, 4'000'000);
  EXPECT_NEAR(static_cast<double>(data.source(0).train_documents) / data.source(0).documents, 0.98, 0.005);
  const auto batch = data.batch(500);
  EXPECT_EQ(batch.target_count(), 32 * 256);
  for (const auto id : batch.inputs) ASSERT_TRUE(id >= 0 && id <= 256);
}

}  // namespace
}  // namespace cairn::data
