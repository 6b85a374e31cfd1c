// labels: quick
// The digest: its definition in numbers, equality of all instruction sets, and what must change it or must not.
#include "checkpoints/digest.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <hwy/targets.h>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <tuple>

#include "checkpoints/kernels/digest_simd.h"

namespace cairn::checkpoints {
namespace {

constexpr DType kTypes[] = {DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64,
                            DType::I32, DType::I16, DType::I8,  DType::U8,   DType::BOOL};

std::vector<char> random_bytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<char> bytes(n);
  for (char& b : bytes) b = static_cast<char>(random());
  return bytes;
}

TensorView view_of(const std::vector<char>& bytes, DType dtype, size_t skip_bytes = 0,
                   std::string name = "layer.weight") {
  const int64_t n = (bytes.size() - skip_bytes) / dtype_size(dtype);
  return {std::move(name), dtype, {n}, bytes.data() + skip_bytes};
}

// The piece [begin, end) of a flat tensor, under the whole tensor's name.
Digest piece(const TensorView& whole, int64_t begin, int64_t end) {
  TensorView part = whole;
  part.shape = {end - begin};
  part.data = static_cast<const char*>(whole.data) + begin * dtype_size(whole.dtype);
  return digest_tensor(part, begin);
}

// Computed with the numpy lines of checkpoints/FORMATS.md; they do not move.
TEST(Digest, KnownValues) {
  std::vector<float> floats(3000);
  std::iota(floats.begin(), floats.end(), 0.0f);
  EXPECT_EQ(digest_tensor({"model.norm.weight", DType::F32, {3, 1000}, floats.data()}).hex(),
            "5db59506be0b81a0d0f76436c3fd17f6");
  std::vector<int64_t> integers(1500);
  for (size_t i = 0; i < integers.size(); ++i) integers[i] = static_cast<int64_t>(i * i * i) - 7;
  EXPECT_EQ(digest_tensor({"step", DType::I64, {1500}, integers.data()}).hex(), "aedbca9751195c18d00e48ea1f6acd34");
  std::vector<uint16_t> halves(1100);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i * 40503);
  EXPECT_EQ(digest_tensor({"größe", DType::BF16, {1100}, halves.data()}).hex(), "3460d56bac4337cf969755d4d18b476e");
  std::vector<uint8_t> bytes(10, 0);
  EXPECT_EQ(digest_tensor({"", DType::U8, {10}, bytes.data()}).hex(), "270010717c6a9c93b73151d5073e019a");
}

TEST(Digest, HexRoundTripAndRefusals) {
  const Digest d{0x0123456789abcdef, 0xfedcba9876543210};
  EXPECT_EQ(d.hex(), "fedcba98765432100123456789abcdef");
  EXPECT_EQ(Digest::from_hex(d.hex()), d);
  for (const char* bad : {"", "0", "fedcba98765432100123456789abcdeg", "FEDCBA98765432100123456789ABCDEF",
                          "fedcba98765432100123456789abcdef0", "0xdcba98765432100123456789abcdef"})
    EXPECT_THROW(Digest::from_hex(bad), std::invalid_argument) << bad;
  EXPECT_EQ(d - d, Digest{});
  EXPECT_THROW(digest_tensor({"x", DType::F32, {1}, &d}, -1), std::invalid_argument);
}

TEST(Digest, EveryInstructionSetEqualsTheDefinition) {
  std::set<std::string> seen;
  const int64_t supported = hwy::SupportedTargets();
  for (int bit = 0; bit < 63; ++bit) {
    const int64_t target = int64_t{1} << bit;
    if ((supported & target) == 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
    seen.insert(digest_target());
    std::mt19937_64 random(7);
    for (DType dtype : kTypes)
      for (int64_t n : {0, 1, 2, 7, 15, 16, 17, 63, 1000, 1023, 1024, 1025, 5000}) {
        const size_t skip = random() % 8;  // unaligned data
        const int64_t first = random() % 3 == 0 ? 0 : random() % (int64_t{1} << 40);
        const auto bytes = random_bytes(n * dtype_size(dtype) + skip, n + 1);
        const TensorView view = view_of(bytes, dtype, skip);
        EXPECT_EQ(digest_tensor(view, first), digest_tensor_reference(view, first))
            << digest_target() << " " << dtype_name(dtype) << " " << n << " elements from " << first;
      }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
  }
  EXPECT_GT(seen.size(), 1u) << "only one instruction set was tried";
}

TEST(Digest, PiecesAddUpInAnyOrderForAnyThreads) {
  const auto bytes = random_bytes(4 * 200'001, 3);
  const TensorView whole = view_of(bytes, DType::F32);
  const Digest expected = digest_tensor_reference(whole);
  std::mt19937_64 random(5);
  const int before = omp_get_max_threads();
  for (int threads : {1, 2, 3, 8}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(digest_tensor(whole), expected) << threads << " threads";
    std::vector<int64_t> cuts = {0, whole.numel()};
    for (int k = 0; k < 40; ++k) cuts.push_back(random() % whole.numel());
    std::sort(cuts.begin(), cuts.end());
    std::vector<size_t> order(cuts.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    Digest sum;
    for (size_t k : order) sum += piece(whole, cuts[k], cuts[k + 1]);
    EXPECT_EQ(sum, expected) << threads << " threads";
  }
  omp_set_num_threads(before);
}

// A [rows, columns] matrix split by columns over two ranks, each calling once a row.
TEST(Digest, ColumnSlicesAddUp) {
  const int64_t rows = 37, columns = 101, left = 40;
  const auto bytes = random_bytes(2 * rows * columns, 11);
  const TensorView whole{"w", DType::BF16, {rows, columns}, bytes.data()};
  Digest sum;
  for (int64_t r = 0; r < rows; ++r) {
    sum += piece(whole, r * columns, r * columns + left);
    sum += piece(whole, r * columns + left, (r + 1) * columns);
  }
  EXPECT_EQ(sum, digest_tensor(whole));
}

TEST(Digest, ManyTensorsInOnePass) {
  std::vector<std::vector<char>> data;
  std::vector<TensorView> views;
  Digest sum;
  for (int k = 0; k < 50; ++k) {
    data.push_back(random_bytes(k * 997 * (k % 7 == 0 ? 40 : 1), k));
    views.push_back(
        {"tensor." + std::to_string(k), DType::U8, {static_cast<int64_t>(data.back().size())}, data.back().data()});
    sum += digest_tensor_reference(views.back());
  }
  EXPECT_EQ(digest_tensors(views), sum);
  std::shuffle(views.begin(), views.end(), std::mt19937_64(1));
  EXPECT_EQ(digest_tensors(views), sum);
  EXPECT_EQ(digest_tensors({}), Digest{});
}

TEST(Digest, OneFlippedBitChangesBothLanes) {
  for (DType dtype : kTypes) {
    auto bytes = random_bytes(3000, 17);
    const TensorView view = view_of(bytes, dtype);
    const Digest before = digest_tensor(view);
    for (size_t bit = 0; bit < bytes.size() * 8; bit += 1 + bit % 5) {
      bytes[bit / 8] ^= 1 << bit % 8;
      const Digest after = digest_tensor(view);
      EXPECT_TRUE(after.lo != before.lo && after.hi != before.hi) << dtype_name(dtype) << " bit " << bit;
      bytes[bit / 8] ^= 1 << bit % 8;
    }
    EXPECT_EQ(digest_tensor(view), before);
  }
}

TEST(Digest, MovedElementsNamesAndLengthsChangeIt) {
  std::vector<float> a(5000);
  std::mt19937_64 random(23);
  std::normal_distribution<float> normal;
  for (float& x : a) x = normal(random);
  const auto of = [](const std::vector<float>& x, std::string name = "a") {
    return digest_tensor({std::move(name), DType::F32, {static_cast<int64_t>(x.size())}, x.data()});
  };
  const Digest before = of(a);
  const auto differs = [&](const Digest& d) { return d.lo != before.lo && d.hi != before.hi; };
  for (int k = 0; k < 2000; ++k) {  // two elements swapped, near and far
    const size_t i = random() % a.size(), j = k % 2 ? random() % a.size() : (i + 1) % a.size();
    if (a[i] == a[j]) continue;
    std::swap(a[i], a[j]);
    EXPECT_TRUE(differs(of(a))) << i << " " << j;
    std::swap(a[i], a[j]);
  }
  for (size_t shift : {1, 2, 16, 1000, 1024, 2048}) {  // the whole tensor rotated, by whole blocks too
    auto b = a;
    std::rotate(b.begin(), b.begin() + shift, b.end());
    EXPECT_TRUE(differs(of(b))) << shift;
  }
  for (const char* name : {"b", "", "A", "aa", "a "}) EXPECT_TRUE(differs(of(a, name))) << name;
  auto longer = a;
  longer.push_back(0.0f);
  EXPECT_TRUE(differs(of(longer)));
  EXPECT_TRUE(differs(of(std::vector<float>(a.begin(), a.end() - 1))));
  // All zeros are not nothing, and +0 is not -0.
  EXPECT_NE(of(std::vector<float>(10, 0.0f)), Digest{});
  EXPECT_NE(of(std::vector<float>(10, 0.0f)), of(std::vector<float>(11, 0.0f)));
  EXPECT_NE(of(std::vector<float>(10, 0.0f)), of(std::vector<float>(10, -0.0f)));
  // Tensors that swap their values.
  const std::vector<float> x(100, 1.0f), y(100, 2.0f);
  EXPECT_NE(of(x, "x") + of(y, "y"), of(y, "x") + of(x, "y"));
}

// Small integers, few bits set, repeated patterns: what a weak sum would confuse. All differences of all pairs of
// single changes are distinct in each lane.
TEST(Digest, StructuredChangesDoNotCancel) {
  std::vector<float> a(4096, 0.0f);
  const auto of = [&] { return digest_tensor({"w", DType::F32, {64, 64}, a.data()}); };
  const Digest zero = of();
  std::map<uint64_t, std::pair<size_t, float>> lo, hi;
  for (size_t i = 0; i < a.size(); ++i)
    for (float value : {1.0f, -1.0f, 2.0f, 0.5f}) {
      a[i] = value;
      const Digest change = of() - zero;
      a[i] = 0;
      EXPECT_TRUE(lo.emplace(change.lo, std::pair{i, value}).second) << i;
      EXPECT_TRUE(hi.emplace(change.hi, std::pair{i, value}).second) << i;
      EXPECT_FALSE(lo.contains(-change.lo)) << i;  // cancels an earlier change
      EXPECT_FALSE(hi.contains(-change.hi)) << i;
    }
  // [x y y x] -> [y x x y] at every place.
  for (size_t i = 0; i + 4 <= a.size(); i += 4) {
    a[i] = a[i + 3] = 1.0f;
    a[i + 1] = a[i + 2] = 2.0f;
    const Digest one = of();
    a[i] = a[i + 3] = 2.0f;
    a[i + 1] = a[i + 2] = 1.0f;
    const Digest two = of();
    EXPECT_TRUE(one.lo != two.lo && one.hi != two.hi) << i;
    a[i] = a[i + 1] = a[i + 2] = a[i + 3] = 0;
  }
}

// Half of the output bits flip, over all input bits: mean of both lanes within 5% of a half, no bit that never moves.
TEST(Digest, Avalanche) {
  for (DType dtype : {DType::F32, DType::F64, DType::BF16, DType::U8}) {
    const size_t size = dtype_size(dtype), bits = 8 * size;
    std::mt19937_64 random(31);
    double flipped = 0, trials = 0;
    std::vector<double> moved(128, 0);
    for (int round = 0; round < 2000; ++round) {
      uint64_t value = random();
      const int64_t at = random() % 100000;
      const TensorView view{"w", dtype, {1}, &value};
      const Digest before = digest_tensor(view, at);
      value ^= uint64_t{1} << random() % bits;
      const Digest after = digest_tensor(view, at);
      const uint64_t lo = before.lo ^ after.lo, hi = before.hi ^ after.hi;
      flipped += std::popcount(lo) + std::popcount(hi);
      trials += 128;
      for (int b = 0; b < 64; ++b) moved[b] += lo >> b & 1, moved[64 + b] += hi >> b & 1;
    }
    EXPECT_NEAR(flipped / trials, 0.5, 0.05) << dtype_name(dtype);
    for (int b = 0; b < 128; ++b) EXPECT_GT(moved[b], 200) << dtype_name(dtype) << " output bit " << b;
  }
}

}  // namespace
}  // namespace cairn::checkpoints
