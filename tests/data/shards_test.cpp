// labels: quick
// Token files: Cairn's own, .npy, Megatron's, headerless; what is wrong with them.
#include "trainer/data/shard.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/data/fixture.h"
#include "trainer/data/cache.h"
#include "trainer/data/documents.h"
#include "trainer/data/foreign_shards.h"
#include "trainer/data/prepare.h"

namespace cairn::data {
namespace {

std::vector<int32_t> all_of(const TokenStore& store) {
  std::vector<int32_t> ids(store.tokens());
  store.read(0, store.tokens(), ids.data());
  return ids;
}

std::vector<std::vector<int32_t>> documents_of(const TokenStore& store) {
  std::vector<std::vector<int32_t>> out;
  for (int64_t d = 0; d < store.documents(); ++d) {
    std::vector<int32_t> ids(store.document_end(d) - store.document_begin(d));
    if (!ids.empty()) store.read(store.document_begin(d), static_cast<int64_t>(ids.size()), ids.data());
    for (int64_t t = store.document_begin(d); t < store.document_end(d); ++t) EXPECT_EQ(store.document_at(t), d);
    out.push_back(ids);
  }
  return out;
}
using Documents = std::vector<std::vector<int32_t>>;

TEST(ShardFolders, AFolderOfPreparedSourcesStandsForAllOfThem) {
  const Folder folder;
  folder.write("b.txt", "two");
  folder.write("a.txt", "one");
  const std::string out = folder / "out", cache = folder / "cache";
  prepare({text_source(folder / "b.txt"), text_source(folder / "a.txt")}, byte_encoding(), out);
  const auto all = open_source(shard_source(out), byte_encoding(), cache, 1, {}).tokens;
  EXPECT_EQ(documents_of(*all), (Documents{{'o', 'n', 'e', 256}, {'t', 'w', 'o', 256}}));  // by name
  const auto open = [&] { open_source(shard_source(out), byte_encoding(), cache, 1, {}); };
  std::filesystem::create_directories(folder / "out/c");
  expect_error(open, {"out/c is no finished shard", "out/a", "a source of its own"});
  for (const char* shard : {"out/a", "out/b"}) std::filesystem::remove_all(folder / shard);
  expect_error(open, {"out: the folder holds no index.json, nor does a folder in it"});
}

template <class T>
std::string npy(const std::string& descr, const std::string& shape, const std::vector<T>& values, int major = 1,
                const std::string& order = "False") {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  const size_t fixed = major == 1 ? 10 : 12;
  while ((fixed + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string out = "\x93NUMPY" + std::string(1, static_cast<char>(major)) + std::string(1, '\0');
  const auto length = static_cast<uint32_t>(header.size());
  out.append(reinterpret_cast<const char*>(&length), major == 1 ? 2 : 4);
  return out + header + raw(values);
}

std::string megatron_index(uint8_t code, const std::vector<int32_t>& lengths, const std::vector<int64_t>& documents,
                           int64_t item_size) {
  std::vector<int64_t> pointers;
  int64_t at = 0;
  for (const int32_t length : lengths) {
    pointers.push_back(at);
    at += length * item_size;
  }
  return std::string("MMIDIDX\0\0", 9) + raw<uint64_t>({1}) + std::string(1, static_cast<char>(code)) +
         raw<uint64_t>({lengths.size(), documents.size()}) + raw(lengths) + raw(pointers) + raw(documents);
}

class Shards : public testing::Test {
 protected:
  std::shared_ptr<const TokenStore> open(const SourceOptions& source, const Encoding& encoding = byte_encoding()) {
    return open_source(source, encoding, folder_ / "cache", 2, {}).tokens;
  }
  Folder folder_;
};

TEST_F(Shards, CairnShardsComeBack) {
  for (const int64_t vocab : {int64_t{300}, int64_t{65536}, int64_t{65537}, int64_t{200000}}) {
    const std::string path = folder_ / ("s" + std::to_string(vocab));
    {
      ShardWriter writer(path, byte_encoding(vocab));
      writer.add({5, 6, 7}, 11);
      writer.add({}, 12);
      writer.add({static_cast<int32_t>(vocab - 1), 9}, 13);
      EXPECT_FALSE(std::filesystem::exists(path));
      writer.finish({{"name", "x"}});
    }
    EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
    EXPECT_EQ(read_index(path)["dtype"], vocab <= 65536 ? "uint16" : "uint32");
    const auto store = open(shard_source(path), byte_encoding(vocab));
    EXPECT_EQ(documents_of(*store), (Documents{{5, 6, 7, 256}, {256}, {static_cast<int32_t>(vocab - 1), 9, 256}}));
    EXPECT_EQ(store->document_hash(2), 13u);
    EXPECT_NO_THROW(store->verify());
    EXPECT_NO_THROW(store->check_vocabulary(vocab));
    expect_error(
        [&] { store->check_vocabulary(vocab - 1); },
        {"tokens.bin: token 5 (byte " + std::to_string(vocab <= 65536 ? 10 : 20) + ")", std::to_string(vocab - 1)});
  }
}

TEST_F(Shards, AWriterThatDoesNotFinishLeavesNothing) {
  {
    ShardWriter writer(folder_ / "s", byte_encoding());
    writer.add({1}, 0);
    expect_error([&] { writer.add({257}, 0); }, {"the id 257", "257 entries"});
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(Shards, AHandmadeIndexIsEnough) {
  folder_.write("s/tokens.bin", raw<uint16_t>({1, 2, 256, 3, 256, 4}));
  folder_.write("s/index.json", R"({"format": "cairn-tokens", "version": 1, "dtype": "uint16", "tokens": 6})");
  EXPECT_EQ(documents_of(*open(shard_source(folder_ / "s"))), (Documents{{1, 2, 256}, {3, 256}, {4}}));
}

TEST_F(Shards, DamagedCairnShardsAreNamed) {
  const auto fresh = [&] {
    std::filesystem::remove_all(folder_ / "s");
    ShardWriter writer(folder_ / "s", byte_encoding());
    for (int i = 0; i < 10; ++i) writer.add({1, 2, 3}, i);
    writer.finish({});
  };
  fresh();
  std::filesystem::resize_file(folder_ / "s/tokens.bin", 77);
  expect_error([&] { open(shard_source(folder_ / "s")); },
               {"s/tokens.bin", "cut short at byte 77", "40 tokens of uint16 need 80 bytes"});
  std::filesystem::resize_file(folder_ / "s/tokens.bin", 90);
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/tokens.bin", "more than the index says"});
  fresh();
  std::filesystem::resize_file(folder_ / "s/documents.bin", 100);
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/documents.bin", "cut short at byte 100"});
  fresh();
  auto ends = read_whole(folder_ / "s/documents.bin");
  ends[8] = 100;
  folder_.write("s/documents.bin", ends);
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/documents.bin", "byte 8: document 1 ends at token 100"});
  fresh();
  std::filesystem::remove(folder_ / "s/index.json");
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"/s", "no index.json", "no finished shard"});
  fresh();
  folder_.write("s/index.json", "{\"format\": \"cairn-tokens\", \"version\": 2}");
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/index.json", "\"version\": 1, found 2"});
  fresh();
  auto index = nlohmann::json::parse(read_whole(folder_ / "s/index.json"));
  index["digest"] = "no digest";
  folder_.write("s/index.json", index.dump());
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/index.json", "digest: found \"no digest\""});
  fresh();
  index["tokens"] = uint64_t{1} << 63;
  folder_.write("s/index.json", index.dump());
  expect_error([&] { open(shard_source(folder_ / "s")); }, {"s/tokens.bin", "tokens of uint16"});
  fresh();
  auto tokens = read_whole(folder_ / "s/tokens.bin");
  tokens[4] = 99;
  folder_.write("s/tokens.bin", tokens);
  expect_error([&] { open(shard_source(folder_ / "s"))->verify(); }, {"s/tokens.bin", "digest"});
  fresh();
  auto other = byte_encoding();
  other.digest = "another";
  expect_error([&] { open(shard_source(folder_ / "s"), other); }, {"s/index.json", "tokenizer bytes", "another"});
}

TEST_F(Shards, NpyOfEveryIntegerType) {
  const Documents expected = {{1, 2, 256}, {3, 4, 5}};
  const auto same = [&](const std::string& bytes) {
    EXPECT_EQ(documents_of(*open(shard_source(folder_.write("a.npy", bytes)))), expected);
  };
  same(npy<uint16_t>("<u2", "(6,)", {1, 2, 256, 3, 4, 5}));
  same(npy<uint32_t>("<u4", "(6,)", {1, 2, 256, 3, 4, 5}));
  same(npy<int16_t>("<i2", "(2, 3)", {1, 2, 256, 3, 4, 5}));
  same(npy<int32_t>("<i4", "(6,)", {1, 2, 256, 3, 4, 5}, 2));
  same(npy<int64_t>("<i8", "(6,)", {1, 2, 256, 3, 4, 5}, 3));
  EXPECT_EQ(all_of(*open(shard_source(folder_.write("b.npy", npy<uint8_t>("|u1", "(3,)", {7, 8, 9}))))),
            (std::vector<int32_t>{7, 8, 9}));
}

TEST_F(Shards, DamagedNpyIsNamed) {
  const auto bad = [&](const std::string& bytes, const std::vector<std::string>& parts) {
    const std::string path = folder_.write("bad.npy", bytes);
    expect_error([&] { open(shard_source(path)); }, parts);
  };
  const auto whole = npy<uint16_t>("<u2", "(6,)", {1, 2, 256, 3, 4, 5});
  bad(whole.substr(0, whole.size() - 3), {"bad.npy", "byte 137", "cut short", "6 tokens of uint16 end at byte 140"});
  bad(whole.substr(0, 40), {"bad.npy", "byte 40", "cut short"});
  bad(npy<float>("<f4", "(2,)", {1, 2}), {"bad.npy", "'<f4'", "not an integer type"});
  bad(npy<uint16_t>(">u2", "(2,)", {1, 2}), {"'>u2'"});
  bad(npy<uint16_t>("<u2", "(2, 2)", {1, 2, 3, 4}, 1, "True"), {"Fortran order"});
  bad(raw<uint16_t>({1, 2, 3}), {"bad.npy", "byte 0", "dtype: uint16"});
  bad(npy<uint16_t>("<u2", "(9223372036854775807,)", {1, 2}), {"bad.npy", "cut short", "9223372036854775807 tokens"});
  bad(npy<uint16_t>("<u2", "(4294967296, 4294967296)", {1, 2}),
      {"bad.npy", "byte ", "shape: (4294967296, 4294967296)"});
  bad(npy<uint16_t>("<u2", "(99999999999999999999,)", {1, 2}),
      {"bad.npy", "shape: (99999999999999999999,)", "132 bytes"});
}

TEST_F(Shards, MegatronPairsGiveTheirDocuments) {
  // Four sequences in three documents, one of them empty.
  folder_.write("m_text_document.bin", raw<uint16_t>({1, 2, 3, 4, 5, 6}));
  folder_.write("m_text_document.idx", megatron_index(8, {2, 1, 0, 3}, {0, 2, 3, 4}, 2));
  const Documents expected = {{1, 2, 3}, {}, {4, 5, 6}};
  for (const std::string name : {"m_text_document", "m_text_document.bin", "m_text_document.idx", "m_*"}) {
    const auto store = open(shard_source(folder_ / name));
    EXPECT_EQ(documents_of(*store), expected) << name;
    EXPECT_NO_THROW(store->verify());
  }
  folder_.write("n.bin", raw<int32_t>({70000, 2, 3}));
  folder_.write("n.idx", megatron_index(4, {1, 2}, {0, 1, 2}, 4));
  EXPECT_EQ(documents_of(*open(shard_source(folder_ / "n"), byte_encoding(70001))), (Documents{{70000}, {2, 3}}));
}

TEST_F(Shards, DamagedMegatronPairsAreNamed) {
  folder_.write("m.bin", raw<uint16_t>({1, 2, 3, 4, 5}));
  const auto index = megatron_index(8, {2, 1, 3}, {0, 1, 3}, 2);
  const auto bad = [&](const std::string& bytes, const std::vector<std::string>& parts) {
    folder_.write("m.idx", bytes);
    expect_error([&] { open(shard_source(folder_ / "m")); }, parts);
  };
  bad(index, {"m.bin", "byte 10", "cut short", "6 tokens of uint16 end at byte 12"});
  bad(index.substr(0, 60), {"m.idx", "byte 60", "cut short"});
  bad(megatron_index(7, {2}, {0, 1}, 2), {"m.idx", "byte 17", "data type 7"});
  bad("MMIDIDY" + index.substr(7), {"m.idx", "byte 0", "MMIDIDX"});
  bad(megatron_index(8, {2, 1}, {0, 1, 9}, 2), {"m.idx", "document 1", "sequence 9 of 2"});
  bad(megatron_index(8, {2, 1}, {0, 1, 2}, 4), {"m.idx", "sequence 1 begins at byte 8"});
  folder_.write("m.idx", megatron_index(8, {2, 1}, {0, 1, 2}, 2));
  std::filesystem::remove(folder_ / "m.bin");
  expect_error([&] { open(shard_source(folder_ / "m")); }, {"m.bin", "No such file"});
}

TEST_F(Shards, HeaderlessMemmapsNeedADtype) {
  folder_.write("part-0.npy", raw<uint16_t>({1, 256, 2}));
  folder_.write("part-1.npy", raw<uint16_t>({3, 4, 256}));
  const auto store = open(shard_source(folder_ / "part-*.npy", "uint16"));
  EXPECT_EQ(documents_of(*store), (Documents{{1, 256}, {2}, {3, 4, 256}}));  // documents do not cross files
  EXPECT_EQ(all_of(*store), (std::vector<int32_t>{1, 256, 2, 3, 4, 256}));
  std::vector<int32_t> across(3);
  store->read(2, 3, across.data());
  EXPECT_EQ(across, (std::vector<int32_t>{2, 3, 4}));
  folder_.write("odd.bin", "12345");
  expect_error([&] { open(shard_source(folder_ / "odd.bin", "uint16")); },
               {"odd.bin", "byte 5", "cut short, or not of uint16"});
  expect_error([&] { open(shard_source(folder_ / "odd.bin", "float32")); }, {"dtype: 'float32'", "uint16"});
  folder_.write("real.npy", npy<uint16_t>("<u2", "(2,)", {1, 2}));
  expect_error([&] { open(shard_source(folder_ / "real.npy", "uint16")); }, {"real.npy", "leave dtype out"});
  folder_.write("empty.bin", "");
  expect_error([&] { open(shard_source(folder_ / "empty.bin", "uint16")); }, {"empty.bin", "is empty"});
  expect_error([&] { open(shard_source(folder_ / "none")); }, {"/none", "not there"});
}

TEST_F(Shards, IdsBeyondTheVocabularyAreNamed) {
  folder_.write("a.bin", raw<uint32_t>({1, 2, 300, 4}));
  expect_error([&] { open(shard_source(folder_ / "a.bin", "uint32"))->check_vocabulary(257); },
               {"a.bin: token 2 (byte 8)", "the id is 300", "257 entries"});
  folder_.write("b.bin", raw<int32_t>({1, -5}));
  expect_error([&] { open(shard_source(folder_ / "b.bin", "int32"))->check_vocabulary(257); },
               {"b.bin: token 1 (byte 4)", "negative"});
}

// A scan happens once a file; large enough that documents cross the scan's buffer.
TEST_F(Shards, ScansAreRememberedUntilTheFileChanges) {
  std::vector<uint16_t> ids(900000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i % 300007 == 300006 ? 256 : static_cast<uint16_t>(i % 250);
  const std::string path = folder_.write("big.bin", raw(ids));
  int scans = 0;
  const auto count = [&](const Progress& progress) {
    scans += progress.phase == "scan" && progress.bytes == progress.total_bytes;
  };
  const auto open_counted = [&] {
    return open_source(shard_source(path, "uint16"), byte_encoding(), folder_ / "cache", 2, count).tokens;
  };
  const auto first = open_counted();
  EXPECT_EQ(first->documents(), 3);
  EXPECT_EQ(first->document_end(0), 300007);
  EXPECT_EQ(first->document_hash(0), [&] {
    const std::vector<int32_t> widened(ids.begin(), ids.begin() + 300007);
    return document_hash(raw(widened));
  }());
  EXPECT_EQ(open_counted()->digest(), first->digest());
  EXPECT_EQ(scans, 1);
  ids[5] = 3;
  folder_.write("big.bin", raw(ids));
  EXPECT_NE(open_counted()->digest(), first->digest());
  EXPECT_EQ(scans, 2);
}

TEST_F(Shards, TheDigestDoesNotDependOnTheContainer) {
  const std::vector<uint16_t> ids = {1, 2, 256, 3, 256};
  folder_.write("a.bin", raw(ids));
  folder_.write("b.npy", npy<int64_t>("<i8", "(5,)", {1, 2, 256, 3, 256}));
  ShardWriter writer(folder_ / "s", byte_encoding());
  writer.add({1, 2}, 0);
  writer.add({3}, 0);
  writer.finish({});
  const auto digest = open(shard_source(folder_ / "a.bin", "uint16"))->digest();
  EXPECT_EQ(open(shard_source(folder_ / "b.npy"))->digest(), digest);
  EXPECT_EQ(open(shard_source(folder_ / "s"))->digest(), digest);
  folder_.write("c.bin", raw<uint16_t>({1, 2, 256, 4, 256}));
  EXPECT_NE(open(shard_source(folder_ / "c.bin", "uint16"))->digest(), digest);
}

}  // namespace
}  // namespace cairn::data
