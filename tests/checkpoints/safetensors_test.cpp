// labels: quick
// safetensors: round trips, every kind of malformed file, shards. tests/oracles/safetensors_test.py drives the official
// library against the same code through the disabled tests at the end.
#include "checkpoints/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoints/digest.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string packed(const std::string& header, const std::string& data = {}) {
  const uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + data;
}

struct Sample {
  std::vector<std::string> storage;
  std::vector<TensorView> views;

  void add(std::string name, DType dtype, std::vector<int64_t> shape) {
    TensorView view{std::move(name), dtype, std::move(shape), nullptr};
    std::string bytes(view.bytes(), '\0');
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = dtype == DType::BOOL ? i & 1 : static_cast<char>(i * 37 + storage.size());
    storage.push_back(std::move(bytes));
    views.push_back(std::move(view));
    for (size_t k = 0; k < views.size(); ++k) views[k].data = storage[k].data();
  }
};

Sample all_types() {
  Sample s;
  s.add("a.bool", DType::BOOL, {3});
  s.add("b.f32", DType::F32, {2, 3});
  s.add("c.i64", DType::I64, {5});
  s.add("d.bf16", DType::BF16, {3, 1, 3});
  s.add("scalar.f64", DType::F64, {});
  s.add("empty.f16", DType::F16, {0, 7});
  s.add("größe.u8", DType::U8, {11});
  s.add("e.i8", DType::I8, {1});
  s.add("f.i16", DType::I16, {3});
  s.add("g.i32", DType::I32, {2});
  s.add("h.u16", DType::U16, {3});
  s.add("i.u32", DType::U32, {1});
  s.add("j.u64", DType::U64, {2});
  s.add("k.f8a", DType::F8_E4M3, {5});
  s.add("l.f8b", DType::F8_E5M2, {5});
  s.add("m.f16", DType::F16, {3});
  return s;
}

void expect_equal(const TensorView& a, const TensorView& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.dtype, b.dtype) << a.name;
  EXPECT_EQ(a.shape, b.shape) << a.name;
  ASSERT_EQ(a.bytes(), b.bytes());
  EXPECT_TRUE(a.bytes() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0) << a.name;
}

TEST(Safetensors, RoundTripKeepsEverythingAndAligns) {
  const TemporaryFolder folder;
  const Sample sample = all_types();
  const FileEntry entry =
      write_safetensors(folder / "x.safetensors", sample.views, {{"format", "pt"}, {"clé", "\"\\\n"}});
  EXPECT_EQ(entry, digest_file(folder / "x.safetensors"));
  Safetensors file = Safetensors::open(folder / "x.safetensors");
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"clé", "\"\\\n"}}));
  EXPECT_EQ(file.names().size(), sample.views.size());
  const Safetensors moved = std::move(file);
  for (const TensorView& view : sample.views) {
    const TensorView& read = moved.get(view.name);
    expect_equal(view, read);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data) % dtype_size(read.dtype), 0u) << view.name;
  }
  // Given order, wider elements first.
  EXPECT_EQ(std::vector<std::string>(moved.names().begin(), moved.names().begin() + 5),
            (std::vector<std::string>{"c.i64", "scalar.f64", "j.u64", "b.f32", "g.i32"}));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 1) << "a temporary file was left";
  write_safetensors(folder / "none.safetensors", {}, {});
  EXPECT_TRUE(Safetensors::open(folder / "none.safetensors").names().empty());
}

TEST(Safetensors, MissingTensorNamesANearOne) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x.safetensors", all_types().views);
  const auto file = Safetensors::open(folder / "x.safetensors");
  EXPECT_SAYS(message_of([&] { file.get("b.f23"); }), "x.safetensors", "no tensor 'b.f23'", "did you mean 'b.f32'");
}

TEST(Safetensors, WriterRefuses) {
  const TemporaryFolder folder;
  const float x = 1;
  const auto write = [&](std::vector<TensorView> views) { write_safetensors(folder / "x.safetensors", views); };
  EXPECT_THROW(write({{"a", DType::F32, {1}, &x}, {"a", DType::F32, {1}, &x}}), std::invalid_argument);
  EXPECT_THROW(write({{"__metadata__", DType::F32, {1}, &x}}), std::invalid_argument);
  EXPECT_THROW(write({{"a", DType::F32, {-1}, &x}}), std::invalid_argument);
  EXPECT_THROW(write({{"a", DType::F32, {1}, nullptr}}), std::invalid_argument);
  EXPECT_THROW(write({{"\xff", DType::F32, {1}, &x}}), std::invalid_argument);
  EXPECT_TRUE(fs::is_empty(folder.path)) << "a refused write left a file";
  EXPECT_SAYS(message_of([&] { write_safetensors(folder / "no/such/x.safetensors", {}); }), "no/such", "No such file");
}

struct Bad {
  const char* kind;
  std::string bytes;
  const char* says;
};

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}";
}

TEST(Safetensors, EveryMalformedFileIsRefusedByName) {
  const std::string u8 = tensor("U8", "2", "0,2");
  const std::vector<Bad> cases = {
      {"HeaderTooSmall", "", "0 bytes"},
      {"HeaderTooSmall", "1234567", "7 bytes"},
      {"HeaderTooLarge", std::string("\0\0\0\0\0\0\0\x80{}", 10), "at most 100000000"},
      {"HeaderTooLarge", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "100000001"},
      {"InvalidHeaderLength", std::string("\x03\0\0\0\0\0\0\0{}", 10), "3 bytes"},
      {"InvalidHeader", packed("{\"\xff\":" + u8 + "}", "ab"), "byte 10"},
      {"InvalidHeader", packed("{\"\xed\xa0\x80\":" + u8 + "}", "ab"), "UTF-8"},
      {"InvalidHeaderDeserialization", packed("{"), "header"},
      {"InvalidHeaderDeserialization", packed(""), "header"},
      {"InvalidHeaderDeserialization", packed("[]"), "array"},
      {"InvalidHeaderDeserialization", packed(std::string(100000, '[')), "header"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + u8 + "}x", "ab"), "header"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + u8 + std::string("}\0\0", 3), "ab"), "NUL"},
      {"InvalidHeaderDeserialization", packed("\xEF\xBB\xBF{\"a\":" + u8 + "}", "ab"), "byte-order"},
      {"InvalidHeaderDeserialization", packed(R"({"\ud800":)" + u8 + "}", "ab"), "header"},
      {"InvalidHeaderDeserialization", packed(R"({"a":1})"), "'a' is number"},
      {"InvalidHeaderDeserialization", packed(R"({"a":{"dtype":"U8","shape":[2]}})", "ab"), "no field 'data_offsets'"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + tensor("u8", "2", "0,2") + "}", "ab"), "dtype 'u8'"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + tensor("U8", "-2", "0,2") + "}", "ab"), "-2"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + tensor("U8", "2.0", "0,2") + "}", "ab"), "2.0"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + tensor("U8", "99999999999999999999", "0,2") + "}", "ab"),
       "shape"},
      {"InvalidHeaderDeserialization", packed(R"({"a":)" + tensor("U8", "2", "0,2,3") + "}", "ab"), "two integers"},
      {"InvalidHeaderDeserialization", packed(R"({"__metadata__":{"a":1},"a":)" + u8 + "}", "ab"), "__metadata__ 'a'"},
      {"DuplicateKey", packed(R"({"a":)" + u8 + R"(,"a":)" + u8 + "}", "ab"), "'a' is given twice"},
      {"DuplicateKey", packed(R"({"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "ab"), "twice"},
      {"InvalidOffset", packed(R"({"a":)" + tensor("U8", "2", "1,3") + "}", "abc"), "hole"},
      {"InvalidOffset", packed(R"({"a":)" + u8 + R"(,"b":)" + tensor("U8", "2", "3,5") + "}", "abcde"),
       "begin 2 expected"},
      {"InvalidOffset", packed(R"({"a":)" + u8 + R"(,"b":)" + u8 + "}", "ab"), "overlaps"},
      {"InvalidOffset", packed(R"({"a":)" + u8 + R"(,"b":)" + tensor("U8", "2", "1,3") + "}", "abc"), "overlaps"},
      {"InvalidOffset",
       packed(R"({"a":)" + tensor("U8", "0", "0,0") + R"(,"b":)" + tensor("U8", "0", "2,0") + "}", "ab"),
       "ends before"},
      {"ValidationOverflow", packed(R"({"a":)" + tensor("U8", "4294967296,4294967296", "0,2") + "}", "ab"), "shape"},
      {"ValidationOverflow", packed(R"({"a":)" + tensor("F32", "1152921504606846976", "0,2") + "}", "ab"), "bits"},
      {"TensorInvalidInfo", packed(R"({"a":)" + tensor("F32", "2", "0,2") + "}", "ab"), "takes 8 bytes"},
      {"TensorInvalidInfo", packed(R"({"a":)" + tensor("U8", "3", "0,2") + "}", "ab"), "give 2"},
      {"MetadataIncompleteBuffer", packed(R"({"a":)" + u8 + "}", "a"), "truncated"},
      {"MetadataIncompleteBuffer", packed(R"({"a":)" + u8 + "}", "abc"), "after the last tensor"},
      {"MetadataIncompleteBuffer", packed("{}", "a"), "0 bytes"},
  };
  const TemporaryFolder folder;
  for (size_t k = 0; k < cases.size(); ++k) {
    const fs::path path = folder / ("case" + std::to_string(k) + ".safetensors");
    spill(path, cases[k].bytes);
    try {
      Safetensors::open(path);
      ADD_FAILURE() << "case " << k << " (" << cases[k].kind << ", " << cases[k].says << ") was accepted";
    } catch (const SafetensorsError& e) {
      EXPECT_EQ(e.kind, cases[k].kind) << "case " << k << ": " << e.what();
      EXPECT_SAYS(e.what(), path.filename().string(), cases[k].kind, cases[k].says);
    }
  }
  for (const std::string& good : {packed("{}"), packed("  {\"a\":" + u8 + "} \r\n\t", "ab"),
                                  packed(R"({"__metadata__":null,"a":)" + tensor("U8", "2", "0,2") + "}", "ab"),
                                  packed(R"({"a":{"extra":[1],"dtype":"U8","shape":[0,5],"data_offsets":[0,0]}})")}) {
    spill(folder / "good.safetensors", good);
    EXPECT_NO_THROW(Safetensors::open(folder / "good.safetensors")) << good;
  }
  EXPECT_SAYS(message_of([&] { Safetensors::open(folder / "none"); }), "none", "No such file");
  EXPECT_SAYS(message_of([&] { Safetensors::open(folder.path); }), "not a regular file");
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x.safetensors", all_types().views);
  const std::string whole = slurp(folder / "x.safetensors");
  for (size_t n = 0; n < whole.size(); ++n) {
    const fs::path cut = folder / ("cut" + std::to_string(n));  // a new file each: overwriting one waits for the disk
    spill(cut, whole.substr(0, n));
    EXPECT_THROW(Safetensors::open(cut), SafetensorsError) << n;
    fs::remove(cut);
  }
}

TEST(Safetensors, OfficialTestFiles) {
  const char* data = std::getenv("CAIRN_TEST_DATA");
  if (!data) GTEST_SKIP() << "CAIRN_TEST_DATA is not set";
  const fs::path folder = fs::path(data) / "safetensors";
  for (const auto& entry : json::parse(slurp(folder / "manifest.json"))) {
    const std::string file = entry["file"], expected = entry["expect"];
    std::string found = "ok";
    try {
      Safetensors::open(folder / file);
    } catch (const SafetensorsError& e) {
      found = e.kind;
    }
    EXPECT_EQ(found, expected) << file;
  }
}

TEST(ModelWeights, ShardsAndBack) {
  const TemporaryFolder folder;
  Sample sample;
  for (int k = 0; k < 10; ++k)
    sample.add("layer." + std::to_string(k), DType::F32, {25 + (k == 4 ? 100 : 0)});  // 100 bytes, once 500
  const auto names = [&] {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(folder.path)) files.push_back(entry.path().filename());
    std::sort(files.begin(), files.end());
    return files;
  };
  EXPECT_EQ(write_model(folder.path, sample.views).size(), 1u);
  EXPECT_EQ(names(), (std::vector<std::string>{"model.safetensors"}));
  const auto entries = write_model(folder.path, sample.views, {{"format", "pt"}}, 300);  // [3] [1] [500 alone] [3] [2]
  ASSERT_EQ(entries.size(), 6u);
  EXPECT_EQ(names().size(), 6u) << "the unsharded file would hide the shards";
  EXPECT_EQ(entries[0].path, "model-00001-of-00005.safetensors");
  for (const FileEntry& entry : entries) EXPECT_EQ(digest_file(folder.path / entry.path), entry);
  const json index = json::parse(slurp(folder / "model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 1400);
  EXPECT_EQ(index["weight_map"]["layer.4"], "model-00003-of-00005.safetensors");
  for (const fs::path& path : {folder.path, folder / "model.safetensors.index.json"}) {
    const auto model = ModelWeights::open(path);
    EXPECT_EQ(model.files().size(), 5u);
    EXPECT_EQ(model.names().size(), 10u);
    EXPECT_EQ(model.metadata().at("format"), "pt");
    for (const TensorView& view : sample.views) expect_equal(view, model.get(view.name));
    EXPECT_SAYS(message_of([&] { model.get("layer.10"); }), "no tensor 'layer.10'");
  }
  write_model(folder.path, sample.views);
  EXPECT_EQ(ModelWeights::open(folder.path).files().size(), 1u);
  EXPECT_FALSE(fs::exists(folder / "model.safetensors.index.json"));
}

TEST(ModelWeights, BrokenIndexesAreRefused) {
  const TemporaryFolder folder;
  Sample sample;
  for (const char* name : {"a", "b", "c"}) sample.add(name, DType::F32, {25});
  write_model(folder.path, sample.views, {}, 100);
  const fs::path index = folder / "model.safetensors.index.json";
  const std::string good = slurp(index);
  const auto with = [&](const std::string& text) {
    spill(index, text);
    return message_of([&] { ModelWeights::open(folder.path); });
  };
  const auto replaced = [&](std::string from, std::string to) {
    std::string text = good;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_SAYS(with("{"), "index.json");
  EXPECT_SAYS(with("{}"), "weight_map");
  EXPECT_SAYS(with(R"({"weight_map":{}})"), "empty");
  EXPECT_SAYS(with(R"({"weight_map":{"a":1}})"), "'a'", "string");
  EXPECT_SAYS(with(R"({"weight_map":{"a":"../x.safetensors"}})"), "../x.safetensors", "without folders");
  EXPECT_SAYS(with(R"({"weight_map":{"a":"/etc/passwd"}})"), "without folders");
  EXPECT_SAYS(with(R"({"weight_map":{"a":"x.bin"}})"), "pickled");
  EXPECT_SAYS(with(R"({"weight_map":{"a":"m","a":"m"}})"), "'a' is given twice");
  EXPECT_SAYS(with(replaced("model-00002-of-00003", "model-00009-of-00003")), "model-00009-of-00003", "missing");
  EXPECT_SAYS(with(replaced("model-00002-of-00003", "model-00001-of-00003")), "model-00001-of-00003", "no tensor 'b'");
  spill(index, good);
  fs::rename(folder / "model-00001-of-00003.safetensors", folder / "t");  // two shards swapped
  fs::rename(folder / "model-00002-of-00003.safetensors", folder / "model-00001-of-00003.safetensors");
  fs::rename(folder / "t", folder / "model-00002-of-00003.safetensors");
  EXPECT_SAYS(message_of([&] { ModelWeights::open(folder.path); }), "no tensor 'a'");
  fs::remove(folder / "model-00003-of-00003.safetensors");
  EXPECT_SAYS(message_of([&] { ModelWeights::open(folder.path); }), "model-00003-of-00003.safetensors is missing");
}

TEST(ModelWeights, PickledWeightsAreRefusedWithAWayOut) {
  const TemporaryFolder folder;
  EXPECT_SAYS(message_of([&] { ModelWeights::open(folder.path); }), "no weights");
  EXPECT_SAYS(message_of([&] { ModelWeights::open(folder / "none"); }), "does not exist");
  for (const char* name : {"pytorch_model.bin", "model.pt", "model.pth"}) {
    spill(folder / name, "PK");
    EXPECT_SAYS(message_of([&] { ModelWeights::open(folder / name); }), name, "pickled", "python -c", "save_file");
    EXPECT_SAYS(message_of([&] { ModelWeights::open(folder.path); }), "pickled", "python -c");
  }
  write_safetensors(folder / "adapter.safetensors", {});
  EXPECT_NO_THROW(ModelWeights::open(folder.path));
  write_safetensors(folder / "other.safetensors", {});
  EXPECT_SAYS(message_of([&] { ModelWeights::open(folder.path); }), "2 .safetensors files");
}

// ---- the C++ side of tests/oracles/safetensors_test.py ----

fs::path exchange_folder() {
  const char* folder = std::getenv("CAIRN_EXCHANGE");
  return folder ? folder : "";
}

// Writes files for the official reader and says what is in them.
TEST(SafetensorsExchange, DISABLED_Write) {
  const fs::path folder = exchange_folder();
  ASSERT_FALSE(folder.empty()) << "CAIRN_EXCHANGE names the folder";
  const Sample sample = all_types();
  write_safetensors(folder / "single.safetensors", sample.views, {{"format", "pt"}, {"note", "größe"}});
  fs::create_directories(folder / "sharded");
  write_model(folder / "sharded", sample.views, {{"format", "pt"}}, 40);
  json expected;
  for (const TensorView& view : sample.views)
    expected[view.name] = {
        {"dtype", dtype_name(view.dtype)}, {"shape", view.shape}, {"digest", digest_tensor(view).hex()}};
  std::ofstream(folder / "expected.json") << expected.dump(1);
}

// Reads every file *.safetensors of the folder and says what it found: tensors with digests, or the kind of the
// refusal.
TEST(SafetensorsExchange, DISABLED_Read) {
  const fs::path folder = exchange_folder();
  ASSERT_FALSE(folder.empty()) << "CAIRN_EXCHANGE names the folder";
  json found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    json& result = found[entry.path().filename().string()];
    try {
      const auto file = Safetensors::open(entry.path());
      result = {{"tensors", json::object()}, {"metadata", file.metadata()}};
      for (const std::string& name : file.names()) {
        const TensorView& view = file.get(name);
        result["tensors"][name] = {
            {"dtype", dtype_name(view.dtype)}, {"shape", view.shape}, {"digest", digest_tensor(view).hex()}};
      }
    } catch (const SafetensorsError& e) {
      result = {{"refused", e.kind}, {"message", e.what()}};
    }
  }
  std::ofstream(folder / "found.json") << found.dump(1, ' ', false, json::error_handler_t::replace);
}

}  // namespace
}  // namespace cairn::checkpoints
