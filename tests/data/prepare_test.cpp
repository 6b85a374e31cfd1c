// labels: quick
// Tokenising: the same bytes for any number of threads, the first error, the cache, `cairn data prepare`.
#include "trainer/data/prepare.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/data/fixture.h"
#include "trainer/data/cache.h"
#include "trainer/data/shard.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {

// Larger than one batch of the pipeline.
std::string many_lines(int documents) {
  std::string lines;
  for (int i = 0; i < documents; ++i) {
    lines +=
        nlohmann::json{{"text", std::string(1 + i * 7919 % 400, static_cast<char>('a' + i % 26)) + std::to_string(i)}}
            .dump() +
        "\n";
  }
  return lines;
}

TEST(Prepare, BytesDoNotDependOnThreads) {
  const Folder folder;
  const auto source = jsonl_source(folder.write("a.jsonl", many_lines(60000)));
  std::string tokens, documents, index;
  for (const int threads : {1, 2, 5}) {
    const std::string out = folder / ("out" + std::to_string(threads));
    const auto done = prepare({source}, byte_encoding(), out, threads);
    ASSERT_EQ(done.size(), 1u);
    EXPECT_EQ(done[0].documents, 60000);
    EXPECT_EQ(done[0].tokens, done[0].bytes + 60000);
    if (threads == 1) {
      tokens = read_whole(out + "/tokens.bin");
      documents = read_whole(out + "/documents.bin");
      index = read_whole(out + "/index.json");
    }
    EXPECT_EQ(read_whole(out + "/tokens.bin"), tokens);
    EXPECT_EQ(read_whole(out + "/documents.bin"), documents);
    EXPECT_EQ(read_whole(out + "/index.json"), index);
  }
}

TEST(Prepare, TheFirstErrorIsReportedAndNothingIsLeft) {
  const Folder folder;
  auto lines = many_lines(60000);
  const auto at = [&](int line) {
    size_t from = 0;
    for (int i = 1; i < line; ++i) from = lines.find('\n', from) + 1;
    return from;
  };
  lines[at(50000)] = '!';
  lines[at(30001)] = '!';
  const auto source = jsonl_source(folder.write("a.jsonl", lines));
  for (const int threads : {1, 2, 4}) {
    expect_error([&] { prepare({source}, byte_encoding(), folder / "out", threads); },
                 {"a.jsonl", "line 30001", "not JSON"});
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
    EXPECT_FALSE(std::filesystem::exists(folder / "out.tmp"));
  }
  auto packed = gzip(many_lines(60000));
  const auto cut = jsonl_source(folder.write("cut.jsonl.gz", packed.substr(0, packed.size() / 2)));
  expect_error([&] { prepare({cut}, byte_encoding(), folder / "out", 2); }, {"cut.jsonl.gz", "cut short"});
}

TEST(Prepare, SeveralSourcesGetAFolderEachAndProgressIsTold) {
  const Folder folder;
  folder.write("a.txt", "alpha");
  folder.write("b.jsonl", "{\"text\": \"beta\"}\n{\"text\": \"gamma\"}\n");
  std::vector<std::string> told;
  const auto done = prepare({text_source(folder / "a.txt"), jsonl_source(folder / "b.jsonl")}, byte_encoding(),
                            folder / "out", 2, [&](const Progress& p) {
                              if (p.bytes == p.total_bytes)
                                told.push_back(p.source + " " + p.phase + " " + std::to_string(p.documents));
                            });
  ASSERT_EQ(done.size(), 2u);
  EXPECT_EQ(done[1].folder, folder / "out/b");
  EXPECT_TRUE(is_shard(folder / "out/a"));
  EXPECT_EQ(told, (std::vector<std::string>{"a hash 0", "a tokenize 1", "b hash 0", "b tokenize 2"}));
  expect_error([&] { prepare({text_source(folder / "a.txt")}, byte_encoding(), folder / "out"); },
               {"/out", "is there already"});
  expect_error([&] { prepare({shard_source(folder / "out/a")}, byte_encoding(), folder / "x"); },
               {"'a'", "is tokens already"});
  expect_error(
      [&] {
        prepare({text_source(folder / "a.txt"), text_source(folder / "a.txt")}, byte_encoding(), folder / "x");
      },
      {"'a' is named twice"});
}

TEST(Prepare, TextWithoutTextIsRefused) {
  const Folder folder;
  expect_error(
      [&] { prepare({jsonl_source(folder.write("a.jsonl", "{\"text\": \"\"}\n\n"))}, byte_encoding(), folder / "x"); },
      {"a.jsonl", "no document with text"});
}

TEST(Prepare, ATokenizerWorksAsAnEncoding) {
  const auto encoding = encoding_of(Tokenizer::bytes());
  EXPECT_EQ(encoding.vocab_size, 257);
  EXPECT_EQ(encoding.eos, 256);
  std::vector<int32_t> ids = {1};
  encoding.encode("ab", ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 'a', 'b'}));
  EXPECT_EQ(encoding.decode({'a', 'b'}), "ab");
  EXPECT_EQ(encoding.digest.size(), 16u);
}

TEST(ReadDocuments, LeavesOutWhatIsHeldOut) {
  const Folder folder;
  const auto source = jsonl_source(folder.write("a.jsonl", many_lines(2000)));
  int all = 0, kept = 0;
  read_documents(source, 0, [&](auto) { return ++all > 0; });
  read_documents(source, 0.2, [&](auto) { return ++kept > 0; });
  EXPECT_EQ(all, 2000);
  EXPECT_NEAR(kept, 1600, 100);
  int few = 0;
  read_documents(source, 0, [&](auto) { return ++few < 5; });
  EXPECT_EQ(few, 5);
}

// Counts what is really tokenised.
struct Counted {
  std::shared_ptr<std::atomic<int>> documents = std::make_shared<std::atomic<int>>(0);
  Encoding encoding = byte_encoding();
  Counted() {
    encoding.encode = [inner = encoding.encode, documents = documents](std::string_view text,
                                                                       std::vector<int32_t>& ids) {
      ++*documents;
      inner(text, ids);
    };
  }
};

TEST(Cache, ASourceIsTokenisedOnce) {
  const Folder folder;
  Counted counted;
  const auto source = jsonl_source(folder.write("a.jsonl", many_lines(50)));
  const auto open = [&](const SourceOptions& from) {
    return open_source(from, counted.encoding, folder / "cache", 2, {});
  };
  const auto first = open(source);
  EXPECT_EQ(*counted.documents, 50);
  EXPECT_EQ(open(source).tokens->digest(), first.tokens->digest());
  EXPECT_EQ(*counted.documents, 50);

  // The same bytes elsewhere, or touched: hashed again, not tokenised again.
  std::filesystem::copy_file(folder / "a.jsonl", folder / "moved.jsonl");
  EXPECT_EQ(open(jsonl_source(folder / "moved.jsonl")).files_digest, first.files_digest);
  std::filesystem::last_write_time(folder / "a.jsonl",
                                   std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  open(source);
  EXPECT_EQ(*counted.documents, 50);

  // Another field, tokenizer or text: again.
  counted.encoding.digest = "bytes, but others";
  open(source);
  EXPECT_EQ(*counted.documents, 100);
  folder.write("a.jsonl", many_lines(60));
  const auto changed = open(source);
  EXPECT_EQ(*counted.documents, 160);
  EXPECT_NE(changed.tokens->digest(), first.tokens->digest());
}

TEST(Cache, ADamagedEntryIsMadeAgain) {
  const Folder folder;
  Counted counted;
  const auto source = text_source(folder.write("a.txt", "hello"));
  const auto open = [&] { return open_source(source, counted.encoding, folder / "cache", 2, {}).tokens->digest(); };
  const auto digest = open();
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / "cache")) {
    if (entry.path().filename() == "tokens.bin") std::filesystem::resize_file(entry.path(), 3);
  }
  EXPECT_EQ(open(), digest);
  EXPECT_EQ(*counted.documents, 2);
}

TEST(Cache, ThoseWhoWantTheSameEntryWaitForIt) {
  const Folder folder;
  Counted counted;
  const auto source = jsonl_source(folder.write("a.jsonl", many_lines(3000)));
  std::vector<uint64_t> digests(4);
  std::vector<std::thread> threads;
  for (auto& digest : digests) {
    threads.emplace_back(
        [&] { digest = open_source(source, counted.encoding, folder / "cache", 1, {}).tokens->digest(); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(*counted.documents, 3000);
  for (const auto digest : digests) EXPECT_EQ(digest, digests[0]);
}

TEST(Cache, AFolderThatCannotBeWrittenIsNamed) {
  const Folder folder;
  const auto source = text_source(folder.write("a.txt", "hello"));
  expect_error([&] { open_source(source, byte_encoding(), folder / "a.txt", 1, {}); }, {"a.txt", "data.cache"});
}

}  // namespace
}  // namespace cairn::data
