// labels: quick
// GGUF: every type of metadata, the block formats by their definitions, every kind of malformed file.
// tests/oracles/gguf_test.py compares with the official package.
#include "checkpoints/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <random>

#include "checkpoints/safetensors.h"
#include "tests/checkpoints/temporary.h"

namespace cairn::checkpoints {
namespace {

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }

// A file put together by hand; every part can be spoilt.
struct Parts {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> entries;
  struct Tensor {
    std::string name;
    std::vector<uint64_t> extents;  // the fastest first, as in the file
    uint32_t type = 0;
    uint64_t offset = 0;
  };
  std::vector<Tensor> tensors;
  std::string data;
  uint64_t alignment = 32;
  std::optional<uint64_t> entry_count, tensor_count;

  void entry(const std::string& key, GgufType type, const std::string& value) {
    entries.push_back(text(key) + raw(static_cast<uint32_t>(type)) + value);
  }
  void array(const std::string& key, GgufType type, uint64_t count, const std::string& values) {
    entry(key, GgufType::ARRAY, raw(static_cast<uint32_t>(type)) + raw(count) + values);
  }
  std::string bytes() const {
    std::string out = magic + raw(version) + raw<uint64_t>(tensor_count.value_or(tensors.size())) +
                      raw<uint64_t>(entry_count.value_or(entries.size()));
    for (const auto& e : entries) out += e;
    for (const auto& t : tensors) {
      out += text(t.name) + raw<uint32_t>(t.extents.size());
      for (const uint64_t extent : t.extents) out += raw(extent);
      out += raw(t.type) + raw(t.offset);
    }
    if (!data.empty()) out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data;
  }
};

class GgufFile : public ::testing::Test {
 protected:
  Gguf open(const Parts& parts) { return open(parts.bytes()); }
  Gguf open(const std::string& bytes) {
    spill(folder_ / "model.gguf", bytes);
    return Gguf::open(folder_ / "model.gguf");
  }
  template <class T>
  std::string refusal(const T& parts) {
    return message_of([&] { open(parts); });
  }
  TemporaryFolder folder_;
};

Parts two_tensors() {
  Parts parts;
  parts.entry("general.architecture", GgufType::STRING, text("llama"));
  parts.tensors = {{"a", {3, 2}, 0, 0}, {"b", {32}, 8, 32}};
  for (int i = 0; i < 6; ++i) parts.data += raw(static_cast<float>(i));
  parts.data.resize(32);
  parts.data += raw<uint16_t>(0x3800);  // 0.5
  for (int i = 0; i < 32; ++i) parts.data += raw(static_cast<int8_t>(i - 16));
  return parts;
}

TEST_F(GgufFile, MetadataOfEveryType) {
  Parts parts;
  parts.version = 2;
  parts.entry("u8", GgufType::U8, raw<uint8_t>(200));
  parts.entry("i8", GgufType::I8, raw<int8_t>(-3));
  parts.entry("u16", GgufType::U16, raw<uint16_t>(60000));
  parts.entry("i16", GgufType::I16, raw<int16_t>(-300));
  parts.entry("u32", GgufType::U32, raw<uint32_t>(4000000000u));
  parts.entry("i32", GgufType::I32, raw<int32_t>(-70000));
  parts.entry("u64", GgufType::U64, raw<uint64_t>(1ull << 63));
  parts.entry("i64", GgufType::I64, raw<int64_t>(-(1ll << 40)));
  parts.entry("f32", GgufType::F32, raw(1.5f));
  parts.entry("f64", GgufType::F64, raw(-2.25));
  parts.entry("yes", GgufType::BOOL, raw<uint8_t>(1));
  parts.entry("text", GgufType::STRING, text(std::string("größe\0x", 8)));
  parts.array("texts", GgufType::STRING, 3, text("a") + text("") + text("▁b"));
  parts.array("numbers", GgufType::F32, 2, raw(0.5f) + raw(-1.f));
  parts.array("none", GgufType::I32, 0, "");
  parts.array("flags", GgufType::BOOL, 2, std::string("\1\0", 2));
  parts.array("nested", GgufType::ARRAY, 1, raw<uint32_t>(8) + raw<uint64_t>(1) + text("in"));
  parts.entry("behind", GgufType::U8, raw<uint8_t>(7));
  const Gguf file = open(parts);
  EXPECT_EQ(file.version(), 2u);
  EXPECT_EQ(file.keys().size(), 18u);
  EXPECT_EQ(file.keys().front(), "u8");
  EXPECT_EQ(file.at("u8").integer(), 200);
  EXPECT_EQ(file.at("i8").integer(), -3);
  EXPECT_EQ(file.at("u16").integer(), 60000);
  EXPECT_EQ(file.at("i16").integer(), -300);
  EXPECT_EQ(file.at("u32").integer(), 4000000000);
  EXPECT_EQ(file.at("i32").number(), -70000);
  EXPECT_EQ(file.at("i64").integer(), -(1ll << 40));
  EXPECT_EQ(file.at("f32").number(), 1.5);
  EXPECT_EQ(file.at("f64").number(), -2.25);
  EXPECT_TRUE(file.at("yes").boolean());
  EXPECT_EQ(file.at("text").text(), std::string("größe\0x", 8));
  EXPECT_EQ(file.at("texts").texts(), (std::vector<std::string>{"a", "", "▁b"}));
  EXPECT_EQ(file.at("text").texts().size(), 1u);
  EXPECT_EQ(file.at("numbers").numbers(), (std::vector<double>{0.5, -1}));
  EXPECT_TRUE(file.at("none").integers().empty());
  EXPECT_EQ(file.at("flags").booleans(), (std::vector<bool>{true, false}));
  EXPECT_EQ(file.at("behind").integer(), 7);
  EXPECT_EQ(file.find("not there"), nullptr);
  EXPECT_SAYS(message_of([&] { file.at("not there"); }), "model.gguf", "'not there' is missing");
  EXPECT_SAYS(message_of([&] { file.at("text").integer(); }), "model.gguf: text", "a value of string", "an integer");
  EXPECT_SAYS(message_of([&] { file.at("u64").integer(); }), "below 2^63");
  EXPECT_SAYS(message_of([&] { file.at("u8").boolean(); }), "u8", "true or false");
  EXPECT_SAYS(message_of([&] { file.at("numbers").texts(); }), "an array of 2 values of float32", "strings");
  EXPECT_SAYS(message_of([&] { file.at("nested").texts(); }), "values of array");
}

TEST_F(GgufFile, Tensors) {
  const Gguf file = open(two_tensors());
  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor& a = *file.tensor("a");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));  // row-major
  EXPECT_EQ(a.type->name, "F32");
  std::vector<float> values(6);
  file.read(a, values.data());
  EXPECT_EQ(values, (std::vector<float>{0, 1, 2, 3, 4, 5}));
  values.resize(32);
  file.read(*file.tensor("b"), values.data());
  EXPECT_EQ(values[0], -8);
  EXPECT_EQ(values[31], 7.5);
  EXPECT_EQ(file.tensor("c"), nullptr);
  // Another alignment, holes and any order are fine.
  Parts parts = two_tensors();
  parts.entry("general.alignment", GgufType::U32, raw<uint32_t>(64));
  parts.alignment = 64;
  std::swap(parts.tensors[0], parts.tensors[1]);
  parts.tensors[0].offset = 128;
  parts.data = parts.data.substr(0, 32) + std::string(96, 'x') + parts.data.substr(32);
  const Gguf other = open(parts);
  other.read(*other.tensor("b"), values.data());
  EXPECT_EQ(values[0], -8);
  EXPECT_TRUE(is_gguf(folder_ / "model.gguf"));
  spill(folder_ / "named", parts.bytes());
  spill(folder_ / "other", "GGU");
  EXPECT_TRUE(is_gguf(folder_ / "named"));
  EXPECT_FALSE(is_gguf(folder_ / "other"));
  EXPECT_FALSE(is_gguf(folder_.path));
  EXPECT_FALSE(is_gguf(folder_ / "missing.gguf"));
}

// IEEE 754 binary16 by its definition.
double half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                                      : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -value : value;
}

std::vector<float> numbers(uint32_t type, const std::string& bytes) {
  const BlockType& t = *block_type(type);
  const int64_t blocks = static_cast<int64_t>(bytes.size()) / t.bytes;
  EXPECT_EQ(blocks * t.bytes, static_cast<int64_t>(bytes.size()));
  std::vector<float> out(blocks * t.elements);
  dequantize(t, reinterpret_cast<const uint8_t*>(bytes.data()), blocks, out.data());
  return out;
}

TEST(GgufBlocks, EveryHalf) {
  std::string bytes;
  for (uint32_t bits = 0; bits < 65536; ++bits) bytes += raw(static_cast<uint16_t>(bits));
  const auto values = numbers(1, bytes);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto expected = static_cast<float>(half(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(values[bits])) << bits;
    } else {
      ASSERT_EQ(values[bits], expected) << bits;
      ASSERT_EQ(std::signbit(values[bits]), (bits & 0x8000) != 0) << bits;
    }
  }
}

TEST(GgufBlocks, ByTheirDefinitions) {
  EXPECT_EQ(numbers(0, raw(1.25f) + raw(-7.f)), (std::vector<float>{1.25f, -7}));
  EXPECT_EQ(numbers(30, raw<uint16_t>(0x3FC0) + raw<uint16_t>(0xC000)), (std::vector<float>{1.5f, -2}));
  std::mt19937 random(3);
  // More blocks than one thread's piece holds.
  constexpr int kBlocks = 3000;
  std::string q8, q40, q41;
  std::vector<float> e8, e40, e41;
  for (int b = 0; b < kBlocks; ++b) {
    const auto scale = static_cast<uint16_t>(0x2000 + random() % 0x1C00), least = static_cast<uint16_t>(scale ^ 0x8000);
    const auto d = static_cast<float>(half(scale)), m = static_cast<float>(half(least));
    q8 += raw(scale), q40 += raw(scale), q41 += raw(scale) + raw(least);
    uint8_t nibbles[32];
    for (uint8_t& n : nibbles) n = random() % 16;
    for (int i = 0; i < 32; ++i) {
      const auto q = static_cast<int8_t>(random());
      q8 += raw(q);
      e8.push_back(static_cast<float>(static_cast<double>(q) * d));  // one rounding, as the product has
      e40.push_back(static_cast<float>(static_cast<double>(nibbles[i] - 8) * d));
      const auto product = static_cast<float>(static_cast<double>(nibbles[i]) * d);
      e41.push_back(static_cast<float>(static_cast<double>(product) + m));
    }
    for (int i = 0; i < 16; ++i) {
      const auto both = static_cast<char>(nibbles[i] | nibbles[i + 16] << 4);
      q40 += both, q41 += both;
    }
  }
  EXPECT_EQ(numbers(8, q8), e8);
  EXPECT_EQ(numbers(2, q40), e40);
  EXPECT_EQ(numbers(3, q41), e41);
  EXPECT_EQ(readable_block_types(), "F32, F16, Q4_0, Q4_1, Q8_0, BF16");
  EXPECT_EQ(block_type(12)->name, "Q4_K");
  EXPECT_EQ(block_type(4), nullptr);
}

TEST_F(GgufFile, TypesKnownByNameAlone) {
  Parts parts;
  parts.tensors = {{"blk.0.attn_q.weight", {256}, 12, 0}};
  parts.data = std::string(144, '\1');
  const Gguf file = open(parts);
  float values[256];
  EXPECT_SAYS(message_of([&] { file.read(*file.tensor("blk.0.attn_q.weight"), values); }), "model.gguf",
              "blk.0.attn_q.weight", "Q4_K", "F32, F16, Q4_0, Q4_1, Q8_0, BF16");
}

TEST_F(GgufFile, RefusesHeaders) {
  EXPECT_SAYS(refusal(std::string()), "model.gguf", "no GGUF file", "0 bytes");
  EXPECT_SAYS(refusal(std::string("GG")), "2 bytes");
  EXPECT_SAYS(refusal(std::string("PK\3\4 and so on")), "50 4b 03 04");
  EXPECT_SAYS(refusal(std::string("GGUF\3")), "truncated", "the header");
  Parts parts = two_tensors();
  parts.version = 1;
  EXPECT_SAYS(refusal(parts), "version 1", "2 and 3");
  parts.version = 4;
  EXPECT_SAYS(refusal(parts), "version 4");
  parts.version = 0x03000000;
  EXPECT_SAYS(refusal(parts), "big-endian", "version 3");
  parts.version = 3;
  parts.entry_count = 1ull << 60;
  EXPECT_SAYS(refusal(parts), "1152921504606846976 metadata entries", "too few");
  parts.entry_count.reset();
  parts.tensor_count = 1ull << 61;
  EXPECT_SAYS(refusal(parts), "tensors", "too few");
  parts.tensor_count = 3;  // the data are read as a third
  EXPECT_THROW(open(parts), GgufError);
  EXPECT_SAYS(message_of([&] { Gguf::open(folder_ / "none.gguf"); }), "none.gguf");
  EXPECT_SAYS(message_of([&] { Gguf::open(folder_.path); }), "not a regular file");
}

TEST_F(GgufFile, RefusesMetadata) {
  const auto with = [&](const std::string& entry) {
    Parts parts = two_tensors();
    parts.entries.push_back(entry);
    return refusal(parts);
  };
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(13)), "metadata 'k'", "type 13", "0 to 12");
  EXPECT_SAYS(with(text("") + raw<uint32_t>(0) + "x"), "entry 1", "empty name");
  EXPECT_SAYS(with(text("\xFF") + raw<uint32_t>(0) + "x"), "not UTF-8");
  EXPECT_SAYS(with(text(std::string(70000, 'k')) + raw<uint32_t>(0) + "x"), "70000 bytes");
  EXPECT_SAYS(with(text("general.architecture") + raw<uint32_t>(0) + "x"), "'general.architecture' is given twice");
  EXPECT_SAYS(with(raw<uint64_t>(1ull << 62)), "name of metadata entry 1", "truncated");
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(8) + raw<uint64_t>(UINT64_MAX)), "metadata 'k'", "truncated");
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(9) + raw<uint32_t>(4) + raw<uint64_t>(1ull << 62)), "metadata 'k'",
              "values of uint32");
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(9) + raw<uint32_t>(8) + raw<uint64_t>(1ull << 61)), "values of string");
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(9) + raw<uint32_t>(77) + raw<uint64_t>(1)), "type 77");
  EXPECT_SAYS(with(text("k") + raw<uint32_t>(7) + "\2"), "metadata 'k'", "truth value of 2");
  std::string deep = text("k") + raw<uint32_t>(9);
  for (int i = 0; i < 6; ++i) deep += raw<uint32_t>(9) + raw<uint64_t>(1);
  EXPECT_SAYS(with(deep + raw<uint32_t>(0) + raw<uint64_t>(1) + "x"), "deep");
  for (const int64_t wrong : {0, -32, 24}) {
    Parts parts = two_tensors();
    parts.entry("general.alignment", GgufType::I64, raw(wrong));
    EXPECT_SAYS(refusal(parts), "general.alignment", "power of two", std::to_string(wrong));
  }
  Parts parts = two_tensors();
  parts.entry("general.alignment", GgufType::STRING, text("32"));
  EXPECT_SAYS(refusal(parts), "general.alignment", "a value of string");
}

TEST_F(GgufFile, RefusesTensors) {
  const auto with = [&](auto change) {
    Parts parts = two_tensors();
    change(parts);
    return refusal(parts);
  };
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].name = "a"; }), "tensor 'a' is given twice");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].name = ""; }), "tensor 0", "empty name");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].extents = {1, 1, 1, 1, 1}; }), "'a'", "5 dimensions");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].extents = {3, 0}; }), "'a'", "dimension 1", "no elements");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].extents = {1ull << 40, 1ull << 40}; }), "'a'", "larger than any file");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].extents = {UINT64_MAX}; }), "'a'", "larger than any file");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[0].type = 5; }), "'a'", "type 5", "none of ggml's");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].extents = {16, 2}; }), "'b'", "rows of 16", "Q8_0", "32");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].offset = 33; }), "'b'", "offset 33", "alignment 32");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].offset = 0; }), "'b' at offset 0 overlaps tensor 'a'");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].offset = 1ull << 62; }), "'b' ends beyond the file", "truncated");
  EXPECT_SAYS(with([](Parts& p) { p.tensors[1].offset = UINT64_MAX - 31; }), "'b' ends beyond the file");
  EXPECT_SAYS(with([](Parts& p) { p.data.pop_back(); }), "'b' ends beyond the file", "truncated");
  EXPECT_SAYS(with([](Parts& p) { p.data.clear(); }), "ends beyond the file", "0 bytes of data");
}

// However a file is cut or a byte of it changed: it is read or refused, and what was read can be looked at.
TEST_F(GgufFile, NothingElseHappens) {
  Parts parts = two_tensors();
  parts.entry("n", GgufType::U32, raw<uint32_t>(5));
  parts.array("texts", GgufType::STRING, 3, text("a") + text("") + text("bc"));
  const std::string whole = parts.bytes();
  for (size_t size = 0; size < whole.size(); ++size) EXPECT_THROW(open(whole.substr(0, size)), GgufError) << size;
  std::mt19937 random(1);
  int read = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string bytes = whole;
    for (int k = 0; k <= i % 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      const Gguf file = open(bytes);
      for (const GgufTensor& tensor : file.tensors()) {
        if (!tensor.type->to_float) continue;
        std::vector<float> values(tensor.numel());
        file.read(tensor, values.data());
      }
      for (const std::string& key : file.keys()) {
        const GgufValue& value = file.at(key);
        if (value.type() == GgufType::STRING) value.text();
        if (value.type() == GgufType::ARRAY && value.element_type() == GgufType::STRING) value.texts();
      }
      ++read;
    } catch (const GgufError&) {
    }
  }
  EXPECT_GT(read, 50);
  EXPECT_LT(read, 1450);
}

TEST(MadeWeights, AreMadeWhenAskedForAndOnce) {
  int made = 0;
  const auto weights = ModelWeights::made("somewhere", {{{"a", DType::F32, {2}, nullptr},
                                                         [&](void* to) {
                                                           const float values[2] = {1.f + made++, 2};
                                                           std::memcpy(to, values, 8);
                                                         }},
                                                        {{"b", DType::F32, {1}, nullptr}, [](void*) { FAIL(); }}});
  EXPECT_EQ(weights.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(weights.contains("a"));
  EXPECT_EQ(weights.info("b").shape, (std::vector<int64_t>{1}));
  EXPECT_EQ(weights.info("a").data, nullptr);
  EXPECT_EQ(made, 0);
  EXPECT_EQ(static_cast<const float*>(weights.get("a").data)[0], 1);
  EXPECT_EQ(static_cast<const float*>(weights.get("a").data)[0], 1);
  EXPECT_EQ(made, 1);
  weights.release("a");
  EXPECT_EQ(static_cast<const float*>(weights.get("a").data)[0], 2);
  EXPECT_SAYS(message_of([&] { weights.get("c"); }), "somewhere", "'c'");
  EXPECT_TRUE(weights.metadata().empty());
  EXPECT_TRUE(weights.files().empty());
}

}  // namespace
}  // namespace cairn::checkpoints
