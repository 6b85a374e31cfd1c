// Where a run computes: what can be said without a GPU, and what a GPU has to pass. The Cuda tests have never run so
// far; they are skipped with the reason where there is no GPU.
#include "trainer/device.h"

#include <gtest/gtest.h>

#include <ATen/CPUGeneratorImpl.h>

#include <filesystem>

#include "models/families/family.h"
#include "models/kernels/aten/dropout.h"
#include "models/kernels/ref/dropout.h"
#include "models/random.h"
#include "trainer/device_digest.h"
#include "trainer/model_io.h"
#include "trainer/setup.h"
#include "trainer/step.h"

namespace cairn {
namespace {

at::Tensor random_floats(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed));
}

checkpoints::Digest digest_on_host(const DigestPart& part) {
  return checkpoints::digest_tensor(view_of(part.name, part.tensor), part.first_index);
}

TEST(Device, SaysWhyThereIsNone) {
  EXPECT_TRUE(choose_device("cpu").is_cpu());
  EXPECT_THROW(choose_device("gpu"), std::invalid_argument);
  EXPECT_EQ(device_name(at::kCPU), "cpu");
  EXPECT_EQ(device_warning(at::kCPU), "");
  std::string why_not;
  if (open_cuda_module(&why_not)) GTEST_SKIP() << "there is a GPU";
  EXPECT_TRUE(choose_device("auto").is_cpu());
  try {
    choose_device("cuda");
    FAIL();
  } catch (const std::invalid_argument& error) {
    const std::string text = error.what();
    EXPECT_EQ(text, "cuda: " + why_not + "; or choose cpu or auto");
  }
}

// Digests in LibTorch's operators are those of the definition, however pieces lie in blocks of 1024.
TEST(DeviceDigest, IsTheDigest) {
  std::vector<DigestPart> parts;
  checkpoints::Digest expected;
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    uint64_t seed = 1;
    for (auto [n, first] : {std::pair<int64_t, int64_t>{1, 0},
                            {1023, 0},
                            {1024, 1024},
                            {1025, 1023},
                            {5000, 77},
                            {3, 2046},
                            {9'000'000, 4096 * 3 + 5},
                            {0, 0}}) {
      const at::Tensor x = random_floats({n}, seed++).to(type);
      if (n > 2) x[1] = -0.0, x[2] = std::numeric_limits<float>::quiet_NaN();
      parts.push_back({fmt::format("tensor {} of {}", n, c10::toString(type)), x, first});
      EXPECT_EQ(digest_on_device({parts.back()}).hex(), digest_on_host(parts.back()).hex()) << parts.back().name;
      expected += digest_on_host(parts.back());
    }
  }
  EXPECT_EQ(digest_on_device(parts).hex(), expected.hex());
  EXPECT_EQ(digest_on_device({}).hex(), checkpoints::Digest().hex());
  EXPECT_THROW(digest_on_device({{"x", at::zeros({4}, at::kDouble)}}), std::invalid_argument);
  EXPECT_THROW(digest_on_device({{"x", at::zeros({4, 4}).t()}}), std::invalid_argument);
}

nlohmann::ordered_json llama() {
  return {{"model_type", "llama"},      {"vocab_size", 97},
          {"hidden_size", 64},          {"intermediate_size", 96},
          {"num_hidden_layers", 3},     {"num_attention_heads", 4},
          {"num_key_value_heads", 2},   {"max_position_embeddings", 64},
          {"tie_word_embeddings", true}};
}

data::Batch rows_of_step(int64_t first, int64_t count) {
  data::Batch batch{.rows = count, .context = 48};
  const Philox draws{1, Purpose::data, 0};
  for (int64_t row = first; row < first + count; ++row)
    for (int64_t t = 0; t < 48; ++t) {
      // A language to be learnt: the next id follows from this one, four times out of five.
      const auto id = [&](int64_t i) { return static_cast<int32_t>(draws.bits64(row * 100 + i / 5) % 90 + i % 5); };
      batch.inputs.push_back(id(t));
      batch.targets.push_back(t % 7 == 3 ? -1 : id(t + 1));
      batch.positions.push_back(static_cast<int32_t>(t % 30));
      batch.segments.push_back(static_cast<int32_t>(t / 30));
    }
  return batch;
}

struct Course {
  std::vector<double> losses, norms;
  std::string digest;
};

struct Setting {
  at::Device device = at::kCPU;
  std::string precision = "float32";
  bool aten = false, reference = false;
  std::string optimizer = "adamw";
  double dropout = 0;
};

Course train(const Setting& s, int steps) {
  const auto world = parallel::World::join(parallel::Launch{});
  use_device_passes(!s.aten && !s.reference);
  State state(models::decoder_config(llama(), true), weight_type(s.precision), *world, 2, 0, false, s.device);
  state.model().parameters().initialise(3);
  optim::OptimizerOptions options = optim::defaults(s.optimizer);
  options.lr = 3e-3;
  options.reference = s.aten || s.reference;
  state.set_optimizer(options, 0.9);
  int64_t targets = 0;
  for (const int32_t t : rows_of_step(0, 8).targets) targets += t >= 0;
  const StepData data{.context = 48, .targets = targets, .rows = rows_of_step};
  const StepSettings settings{.batch = 8,
                              .micro_batch = 2,
                              .lanes = 2,
                              .lr = 3e-3,
                              .z_loss = 1e-4,
                              .dropout = s.dropout,
                              .dropout_seed = 5,
                              .products = product_type(s.precision),
                              .reference = s.reference,
                              .aten = s.aten};
  Course course;
  for (int n = 0; n < steps; ++n) {
    const StepResult result = train_step(state, data, settings);
    course.losses.push_back(result.loss);
    course.norms.push_back(result.grad_norm);
  }
  course.digest = state.digest().hex();
  return course;
}

void expect_near(const Course& a, const Course& b, double tolerance, const std::string& what) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t n = 0; n < a.losses.size(); ++n) {
    EXPECT_NEAR(a.losses[n], b.losses[n], tolerance * b.losses[n]) << what << ", loss of step " << n + 1;
    EXPECT_NEAR(a.norms[n], b.norms[n], 10 * tolerance * b.norms[n]) << what << ", gradient norm of step " << n + 1;
  }
}

// What a GPU does without hand-written kernels, on the CPU: the losses and norms of the vectorised kernels.
TEST(Device, ItsWayOnTheCpuTrainsAlike) {
  for (const double dropout : {0.0, 0.2}) {
    const Course fast = train({.dropout = dropout}, 8), aten = train({.aten = true, .dropout = dropout}, 8);
    EXPECT_LT(fast.losses.back(), fast.losses.front() - 0.2);
    expect_near(aten, fast, 1e-4, fmt::format("dropout {}", dropout));
    EXPECT_NE(aten.digest, fast.digest);
    EXPECT_EQ(train({.aten = true, .dropout = dropout}, 8).digest, aten.digest);
  }
  for (const char* precision : {"bf16-mixed", "bf16"})
    expect_near(train({.precision = precision, .aten = true}, 5), train({.precision = precision}, 5), 2e-2, precision);
}

class CudaTrainer : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why_not;
    if (!open_cuda_module(&why_not)) GTEST_SKIP() << "no GPU: " << why_not;
    device = choose_device("cuda");
  }
  void TearDown() override { use_device_passes(true); }
  at::Device device = at::kCPU;
};

TEST_F(CudaTrainer, TwentyStepsFollowTheCpu) {
  for (auto [precision, tolerance] :
       {std::pair<const char*, double>{"float32", 1e-3}, {"bf16-mixed", 3e-2}, {"bf16", 5e-2}})
    for (const char* optimizer : {"adamw", "sgd"})
      for (const bool aten : {true, false}) {
        const std::string name = fmt::format("{} {} aten {}", precision, optimizer, aten);
        const Course gpu = train({.device = device, .precision = precision, .aten = aten, .optimizer = optimizer}, 20);
        expect_near(gpu, train({.precision = precision, .optimizer = optimizer}, 20), tolerance, name);
        EXPECT_EQ(train({.device = device, .precision = precision, .aten = aten, .optimizer = optimizer}, 20).digest,
                  gpu.digest)
            << name;
      }
}

TEST_F(CudaTrainer, TheTwinsFollowTooAndDropoutIsTheSame) {
  expect_near(train({.device = device, .reference = true}, 5), train({.reference = true}, 5), 1e-3, "twins");
  expect_near(train({.device = device, .dropout = 0.2}, 5), train({.dropout = 0.2}, 5), 1e-3, "dropout");
  const kernels::DropoutKey key{11, 12, 13};
  EXPECT_TRUE(at::equal(kernels::aten::dropout_mask(70, 300, 0.3, key, device).cpu(),
                        kernels::ref::dropout_mask(70, 300, 0.3, key)));
}

TEST_F(CudaTrainer, DigestsAreThoseOfTheHost) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const DigestPart host{"x", random_floats({12'345'678}, 4).to(type), 777};
    EXPECT_EQ(digest_on_device({{host.name, host.tensor.to(device), host.first_index}}).hex(),
              digest_on_host(host).hex());
  }
}

TEST_F(CudaTrainer, WeightsGoToDiskAndBack) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("cairn-device-{}", getpid());
  models::Decoder model(models::decoder_config(llama(), true), at::kFloat, device);
  model.parameters().initialise(3);
  save_model(model, folder.string());
  const auto cpu = load_model(folder.string()), gpu = load_model(folder.string(), at::kFloat, device);
  EXPECT_TRUE(at::equal(cpu->parameters().flat(), model.parameters().flat().cpu()));
  EXPECT_TRUE(at::equal(gpu->parameters().flat(), model.parameters().flat()));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace cairn
