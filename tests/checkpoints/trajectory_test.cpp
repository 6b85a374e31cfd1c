// Trajectories: written, read back equal to the bit, cut, merged, damaged. (h5py reads them in tests/oracles.)
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "checkpoints/kernels/byte_planes.h"
#include "checkpoints/trajectory/reader.h"
#include "checkpoints/trajectory/verify.h"
#include "checkpoints/trajectory/writer.h"
#include "temporary.h"

namespace cairn::checkpoints::trajectory {
namespace {

namespace fs = std::filesystem;

// A tensor in pieces whose last one is not full, one of exactly one chunk, small ones, a scalar, one with a leading 1.
const std::vector<Format::Tensor> kTensors = {{"embed.weight", {1031, 300}},
                                              {"mlp.weight", {256, 256}},
                                              {"norm.weight", {33}},
                                              {"bias/odd name", {7, 3}},
                                              {"scale", {}},
                                              {"conv", {1, 520, 130}}};

// Weights that drift: state k of a walk, the same for everyone who asks.
class Walk {
 public:
  explicit Walk(DType dtype = DType::F32) : dtype_(dtype) {
    std::mt19937 draw(7);
    std::normal_distribution<float> normal;
    for (const auto& t : kTensors) {
      auto& values = values_.emplace_back(t.numel());
      for (float& v : values) v = 0.02f * normal(draw);
    }
    // What no arithmetic may touch.
    for (float& v : values_[2]) v = -0.0f;
    values_[2][0] = std::numeric_limits<float>::infinity();
    values_[2][1] = std::bit_cast<float>(0x7FC12345u);
    values_[2][2] = std::bit_cast<float>(1u);
    values_[2][3] = 3.4028235e38f;
  }
  void move() {
    for (auto& values : values_)
      for (size_t i = 0; i < values.size(); ++i)
        if (values[i] != 0 && std::isfinite(values[i]))
          values[i] += 1e-3f * values[i] * ((i * 2654435761u >> 8) % 5 - 2.f);
  }
  std::vector<TensorView> views() {
    std::vector<TensorView> views;
    narrow_.assign(values_.size(), {});
    for (size_t t = 0; t < values_.size(); ++t) {
      const void* data = values_[t].data();
      if (dtype_ == DType::BF16) {
        narrow_[t].resize(values_[t].size());
        round_to_bf16(values_[t].data(), narrow_[t].data(), values_[t].size());
        data = narrow_[t].data();
      }
      views.push_back({kTensors[t].name, dtype_, kTensors[t].shape, data});
    }
    return views;
  }
  // Bits that a trajectory of that type has to give back.
  std::vector<std::vector<char>> expected(hdf5::Type type) {
    std::vector<std::vector<char>> all;
    for (const auto& values : values_) {
      auto& bits = all.emplace_back(values.size() * hdf5::type_size(type));
      std::vector<uint16_t> narrow(values.size());
      round_to_bf16(values.data(), narrow.data(), values.size());
      if (type == hdf5::Type::bf16) {
        std::memcpy(bits.data(), narrow.data(), bits.size());
      } else if (dtype_ == DType::BF16) {
        widen_bf16(narrow.data(), reinterpret_cast<uint32_t*>(bits.data()), values.size());
      } else {
        std::memcpy(bits.data(), values.data(), bits.size());
      }
    }
    return all;
  }

 private:
  DType dtype_;
  std::vector<std::vector<float>> values_;
  std::vector<std::vector<uint16_t>> narrow_;
};

using Expected = std::map<int64_t, std::vector<std::vector<char>>>;

void expect_holds(const fs::path& folder, const Expected& expected) {
  Reader reader(folder);
  std::vector<int64_t> steps;
  for (const auto& [step, tensors] : expected) steps.push_back(step);
  ASSERT_EQ(reader.steps(), steps);
  for (size_t t = 0; t < kTensors.size(); ++t) {
    std::vector<char> all(kTensors[t].numel() * hdf5::type_size(reader.format().dtype) * steps.size());
    reader.read_bits(t, 0, steps.size(), all.data());
    const size_t bytes = all.size() / std::max<size_t>(steps.size(), 1);
    for (size_t k = 0; k < steps.size(); ++k)
      EXPECT_EQ(std::memcmp(all.data() + k * bytes, expected.at(steps[k])[t].data(), bytes), 0)
          << kTensors[t].name << " at step " << steps[k];
  }
  const auto fault = verify(folder);
  EXPECT_FALSE(fault) << fault->message();
}

struct Case {
  Codec codec;
  hdf5::Type type;
  DType from;
};

class TrajectoryTest : public testing::TestWithParam<Case> {
 protected:
  Format format() const { return {kTensors, GetParam().type, GetParam().codec}; }
  // Adds `count` steps, 10 apart.
  void write(Writer& writer, int count) {
    for (int k = 0; k < count; ++k) {
      step_ += 10;
      walk_.move();
      writer.add(step_, walk_.views());
      expected_[step_] = walk_.expected(GetParam().type);
    }
  }
  TemporaryFolder folder_;
  Walk walk_{GetParam().from};
  Expected expected_;
  int64_t step_ = 0;
};

TEST_P(TrajectoryTest, EveryBitComesBack) {
  {
    Writer writer(folder_.path, format(), {.threads = 2, .segment_steps = 5});
    write(writer, 23);  // past a key frame, four segments and a part of one
    EXPECT_EQ(writer.unsealed_steps(), 3);
    writer.seal();
    EXPECT_EQ(writer.index().segments.size(), 5u);
  }
  expect_holds(folder_.path, expected_);
  // Rows on their own, too.
  Reader reader(folder_.path);
  const size_t t = reader.tensor("embed.weight");
  for (int64_t k : {22, 0, 17, 16, 5}) {
    std::vector<char> bits(kTensors[t].numel() * hdf5::type_size(GetParam().type));
    reader.read_bits(t, k, 1, bits.data());
    EXPECT_EQ(bits, expected_[reader.steps()[k]][t]) << k;
  }
}

TEST_P(TrajectoryTest, GoesOnAndIsCut) {
  {
    Writer writer(folder_.path, format(), {.segment_steps = 4});
    write(writer, 7);
    writer.seal();
    write(writer, 2);  // never sealed: gone
  }
  expected_.erase(80);
  expected_.erase(90);
  expect_holds(folder_.path, expected_);
  // A run that goes on after step 55: 60 and 70 go, 50 stays though its segment held 60.
  expected_.erase(60);
  expected_.erase(70);
  {
    Writer writer(folder_.path, format(), {.segment_steps = 4}, 55);
    EXPECT_EQ(writer.last_step(), 50);
    expect_holds(folder_.path, expected_);
    step_ = 50;
    write(writer, 3);
    writer.seal();
  }
  expect_holds(folder_.path, expected_);
}

TEST_P(TrajectoryTest, ManySegmentsAreMerged) {
  WriterOptions options{.segment_steps = 3, .max_segments = 6, .merge = 4};
  {
    Writer writer(folder_.path, format(), options);
    write(writer, 41);
    writer.seal();
    EXPECT_LE(writer.index().segments.size(), 6u);
  }
  expect_holds(folder_.path, expected_);
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder_.path)) files += entry.path().extension() == ".h5";
  EXPECT_LE(files, 7u);  // what was merged is gone
}

TEST_P(TrajectoryTest, AnotherFormatIsRefused) {
  {
    Writer writer(folder_.path, format(), {});
    write(writer, 1);
    writer.seal();
  }
  Format other = format();
  other.dtype = other.dtype == hdf5::Type::bf16 ? hdf5::Type::f32 : hdf5::Type::bf16;
  EXPECT_SAYS(message_of([&] { Writer(folder_.path, other, {}); }), "float32", "bfloat16", "keeps its format");
  Writer begun_anew(folder_.path, other, {}, 0);  // nothing of the old one stays
  EXPECT_EQ(begun_anew.last_step(), -1);
}

INSTANTIATE_TEST_SUITE_P(
    Formats, TrajectoryTest,
    testing::Values(Case{Codec::plain, hdf5::Type::f32, DType::F32}, Case{Codec::plain, hdf5::Type::bf16, DType::F32},
                    Case{Codec::zstd, hdf5::Type::f32, DType::BF16}, Case{Codec::zstd, hdf5::Type::bf16, DType::BF16},
                    Case{Codec::delta, hdf5::Type::f32, DType::F32}, Case{Codec::delta, hdf5::Type::bf16, DType::F32}));

class DamageTest : public testing::Test {
 protected:
  DamageTest() {
    Writer writer(folder_.path, {kTensors, hdf5::Type::bf16, Codec::plain}, {.segment_steps = 2});
    Walk walk;
    for (int64_t step : {1, 2, 4, 8}) writer.add(step, walk.views());
  }
  void flip(const std::string& file, uint64_t at) {
    std::string bytes = slurp(folder_ / file);
    bytes[at] ^= 4;
    spill(folder_ / file, bytes);
  }
  TemporaryFolder folder_;
};

TEST_F(DamageTest, AFlippedBitIsFoundAnywhere) {
  ASSERT_FALSE(verify(folder_.path));
  for (const std::string file : {"segment-00000.h5", "segment-00001.h5", "trajectory.h5", "MANIFEST.json"}) {
    const uint64_t size = fs::file_size(folder_ / file);
    for (const uint64_t at : {size / 7, size / 2, size - 3}) {
      flip(file, at);
      const auto fault = verify(folder_.path);
      ASSERT_TRUE(fault) << file << " at " << at;
      EXPECT_EQ(fault->file, file);
      flip(file, at);
    }
  }
  EXPECT_FALSE(verify(folder_.path));
}

TEST_F(DamageTest, LostFilesAreNamed) {
  fs::rename(folder_ / "segment-00001.h5", folder_ / "elsewhere");
  EXPECT_SAYS(verify(folder_.path)->message(), "segment-00001.h5", "missing");
  fs::rename(folder_ / "elsewhere", folder_ / "segment-00001.h5");
  spill(folder_ / ".tmp-segment-00002.h5", "what a crash left");
  EXPECT_FALSE(verify(folder_.path));
  fs::remove(folder_ / "trajectory.h5");
  EXPECT_SAYS(verify(folder_.path)->message(), "trajectory.h5", "missing");
  {
    Writer again(folder_.path, {kTensors, hdf5::Type::bf16, Codec::plain}, {});  // mends what can be made anew
  }
  EXPECT_FALSE(verify(folder_.path));
  EXPECT_FALSE(fs::exists(folder_ / ".tmp-segment-00002.h5"));
  fs::remove(folder_ / "MANIFEST.json");
  EXPECT_SAYS(verify(folder_.path)->message(), "MANIFEST.json", "missing");
}

TEST(TrajectoryDisk, AFullDiskIsNamedAndLosesNothing) {
  TemporaryFolder folder;
  const Format format{kTensors, hdf5::Type::f32, Codec::plain};
  Walk walk;
  Expected expected;
  {
    Writer writer(folder.path, format, {});
    writer.add(10, walk.views());
    writer.seal();
    expected[10] = walk.expected(hdf5::Type::f32);
  }
  const auto child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{400000, 400000};
    setrlimit(RLIMIT_FSIZE, &limit);
    int status = 1;
    try {
      Writer writer(folder.path, format, {});
      writer.add(20, walk.views());
      writer.seal();
    } catch (const std::exception& e) {
      const std::string what = e.what();
      status = what.find("segment-00001") != std::string::npos && what.find("too large") != std::string::npos &&
                       what.find("free space") != std::string::npos
                   ? 0
                   : 2;
    }
    _exit(status);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  expect_holds(folder.path, expected);
  for (const auto& entry : fs::directory_iterator(folder.path))
    EXPECT_FALSE(entry.path().filename().string().starts_with(".tmp-")) << entry.path();
}

TEST(TrajectoryWriter, RefusesWhatIsNotTheNextStep) {
  TemporaryFolder folder;
  Walk walk;
  Writer writer(folder.path, {kTensors, hdf5::Type::f32, Codec::zstd}, {});
  writer.add(5, walk.views());
  EXPECT_SAYS(message_of([&] { writer.add(5, walk.views()); }), "step 5 after step 5");
  auto views = walk.views();
  views[1].name = "other";
  EXPECT_SAYS(message_of([&] { writer.add(6, views); }), "'other'", "mlp.weight");
  views = walk.views();
  views[0].dtype = DType::F64;
  EXPECT_SAYS(message_of([&] { writer.add(6, views); }), "embed.weight", "F64");
  views.pop_back();
  EXPECT_SAYS(message_of([&] { writer.add(6, views); }), "5 tensors");
  writer.add(6, walk.views());
}

TEST(TrajectoryReader, OneTensorCostsItsOwnBytes) {
  TemporaryFolder folder;
  Walk walk;
  Writer writer(folder.path, {kTensors, hdf5::Type::f32, Codec::plain}, {});
  for (int64_t step = 1; step <= 100; ++step) writer.add(step, walk.views());
  writer.seal();
  Reader reader(folder.path);
  const size_t t = reader.tensor("mlp.weight");
  uint64_t stored = 0;
  for (const Segment& s : writer.index().segments) {
    SegmentReader segment(folder / s.file.path, writer.index().format);
    for (int64_t row = 0; row < segment.rows(); ++row) stored += segment.raw_chunk(t, row, 0).size();
  }
  reader.read(t, 0, 100);
  EXPECT_LE(reader.bytes_read(), 1.1 * stored) << stored;
}

TEST(TrajectoryKernels, RoundingIsToNearestEven) {
  const std::vector<std::pair<uint32_t, uint16_t>> cases = {
      {0x3F800000, 0x3F80}, {0x3F808000, 0x3F80}, {0x3F818000, 0x3F82}, {0x3F808001, 0x3F81}, {0x3F807FFF, 0x3F80},
      {0x80000000, 0x8000}, {0x7F800000, 0x7F80}, {0x7F7FFFFF, 0x7F80}, {0x7F800001, 0x7FC0}, {0xFFC00000, 0xFFC0}};
  for (const auto& [bits, expected] : cases) {
    uint16_t rounded = 0;
    const float value = std::bit_cast<float>(bits);
    round_to_bf16(&value, &rounded, 1);
    EXPECT_EQ(rounded, expected) << std::hex << bits;
  }
}

}  // namespace
}  // namespace cairn::checkpoints::trajectory
