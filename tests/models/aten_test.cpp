// labels: quick
// What tensors on a GPU go through (kernels/aten), held against the plain twins on the CPU: the operators know no
// device.
#include <cstdlib>
#include <limits>

#include "models/decoder.h"
#include "models/families/family.h"
#include "models/kernels/aten/attention.h"
#include "models/kernels/aten/cross_entropy.h"
#include "models/kernels/aten/dropout.h"
#include "models/kernels/aten/embedding.h"
#include "models/kernels/embedding.h"
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/cross_entropy.h"
#include "models/kernels/ref/dropout.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

struct LossCase {
  int64_t N, D, V;
  bool bias;
  double predicted;  // share of the rows
  CrossEntropyOptions options;
};
const LossCase kLosses[] = {
    {1, 1, 1, false, 1, {}},
    {8, 16, 37, true, 1, {}},
    {61, 24, 101, false, 1, {.scale = 0.25, .chunk_rows = 8}},
    {100, 24, 129, true, 0.6, {.scale = 0.01, .z_loss = 0.1, .chunk_rows = 16}},
    {64, 32, 300, false, 1, {.softcap = 3, .logit_scale = 0.7}},
    {77, 32, 300, true, 0.5, {.scale = 2, .softcap = 1.5, .logit_scale = 1.3, .z_loss = 0.01, .chunk_rows = 16}},
    {9, 12, 2049, false, 0, {}},
};

at::Tensor targets_of(const LossCase& c) {
  const auto keep = random_ids(c.N, 0, 1000, 5) < c.predicted * 1000;
  return at::where(keep, random_ids(c.N, 0, c.V, 4), at::full({c.N}, -1, at::kInt));
}

TEST(AtenCrossEntropy, EqualsTheTwin) {
  for (const LossCase& c : kLosses) {
    const std::string name = fmt::format("N {} V {} chunk {}", c.N, c.V, c.options.chunk_rows);
    const auto hidden = random_floats({c.N, c.D}, 1), weight = random_floats({c.V, c.D}, 2, 0.7),
               targets = targets_of(c);
    const auto bias = c.bias ? random_floats({c.V}, 3) : at::Tensor();
    const auto dweight = at::ones({c.V, c.D}), dbias = c.bias ? at::ones({c.V}) : at::Tensor();
    const auto out = aten::linear_cross_entropy(hidden, weight, bias, targets, c.options, true, dweight, dbias);
    auto wide = [](const at::Tensor& x) { return x.defined() ? x.to(at::kDouble) : x; };
    const auto expected = ref::linear_cross_entropy(wide(hidden), wide(weight), wide(bias), targets, c.options);
    const double* sums = out.sums.const_data_ptr<double>();
    EXPECT_NEAR(sums[0], expected.nll, 2e-6 * (1 + std::abs(expected.nll))) << name;
    EXPECT_NEAR(sums[1], expected.z, 4e-6 * (1 + std::abs(expected.z))) << name;
    EXPECT_EQ(sums[2], static_cast<double>(expected.correct)) << name;
    expect_close(out.row_nll, expected.row_nll, 2e-6, name + " row_nll");

    auto twin = [&](const Tensors& in) {
      return Tensors{ref::linear_cross_entropy(in[0], in[1], c.bias ? in[2] : at::Tensor(), targets, c.options).loss};
    };
    Tensors inputs{hidden, weight}, gradients{out.dhidden, dweight - 1};
    if (c.bias) inputs.push_back(bias), gradients.push_back(dbias - 1);
    const auto oracle = oracle_gradients(twin, inputs, {at::ones({})});
    for (size_t i = 0; i < inputs.size(); ++i) {
      const double size = oracle[i].abs().max().item<double>() + 1e-30, lost = i > 0 ? 2e-7 : 0;
      expect_close(gradients[i] / size, oracle[i] / size, 4e-6 + lost / size, name + " gradient " + std::to_string(i));
    }

    const auto before = dweight.clone();
    const auto plain = aten::linear_cross_entropy(hidden, weight, bias, targets, c.options, false, dweight, dbias);
    EXPECT_TRUE(same_bits(plain.sums, out.sums)) << name;
    EXPECT_FALSE(plain.dhidden.defined());
    EXPECT_TRUE(same_bits(dweight, before)) << name;
  }
}

// bfloat16 operands beside float32 gradients, as in bf16-mixed.
TEST(AtenCrossEntropy, AddsBfloat16ProductsToFloat32Gradients) {
  const auto hidden = random_floats({96, 32}, 1).to(at::kBFloat16),
             weight = random_floats({200, 32}, 2).to(at::kBFloat16);
  const auto targets = random_ids(96, 0, 200, 3), dweight = at::zeros({200, 32});
  const CrossEntropyOptions options{.scale = 1.0 / 96, .chunk_rows = 32};
  const auto out = aten::linear_cross_entropy(hidden, weight, {}, targets, options, true, dweight, {});
  EXPECT_EQ(out.dhidden.scalar_type(), at::kBFloat16);
  EXPECT_EQ(out.row_nll.scalar_type(), at::kFloat);
  auto twin = [&](const Tensors& in) {
    return Tensors{ref::linear_cross_entropy(in[0], in[1], {}, targets, options).loss};
  };
  const auto oracle = oracle_gradients(twin, {hidden, weight}, {at::ones({})});
  const auto relative = [](const at::Tensor& x, const at::Tensor& y) {
    return (x.to(at::kDouble) - y).norm().item<double>() / y.norm().item<double>();
  };
  EXPECT_LT(relative(out.dhidden, oracle[0]), 1e-2);
  EXPECT_LT(relative(dweight, oracle[1]), 1e-2);
}

TEST(AtenCrossEntropy, RowsWithoutTargetGetNothingAndMistakesAreNamed) {
  const LossCase c{40, 16, 50, false, 0.5, {}};
  const auto weight = random_floats({50, 16}, 2), targets = targets_of(c);
  auto hidden = random_floats({40, 16}, 1);
  const auto silent = targets.lt(0);
  ASSERT_GT(silent.sum().item<int64_t>(), 0);
  hidden.index_put_({silent}, at::full({}, std::numeric_limits<float>::quiet_NaN()));
  const auto dweight = at::zeros({50, 16});
  const auto out = aten::linear_cross_entropy(hidden, weight, {}, targets, {}, true, dweight, {});
  EXPECT_EQ(out.dhidden.index({silent}).abs().sum().item<float>(), 0);
  EXPECT_TRUE(at::isfinite(out.dhidden).all().item<bool>() && at::isfinite(dweight).all().item<bool>());
  EXPECT_NE(message_of([&] {
              aten::linear_cross_entropy(hidden, weight, {}, at::full({40}, 50, at::kInt), {}, false, {}, {});
            }).find("targets[0] is 50, expected -1 or an id of the vocabulary of 50"),
            std::string::npos);
}

struct AttentionCase {
  int64_t batch, length, H, K, D, window;
  bool segments;
  double softcap, dropout;
};
const AttentionCase kAttention[] = {
    {1, 1, 1, 1, 8, 0, false, 0, 0},      {2, 37, 4, 2, 16, 0, false, 0, 0}, {3, 64, 6, 1, 24, 0, true, 0, 0},
    {2, 50, 4, 4, 16, 13, false, 0, 0},   {2, 48, 4, 2, 8, 20, true, 0, 0},  {1, 40, 2, 1, 16, 0, false, 5, 0},
    {2, 33, 4, 2, 16, 64, false, 0, 0.2},
};

TEST(AtenAttention, EqualsTheTwin) {
  for (const AttentionCase& c : kAttention) {
    const std::string name = fmt::format("B {} T {} H {}/{} window {} segments {} cap {} dropout {}", c.batch, c.length,
                                         c.H, c.K, c.window, c.segments, c.softcap, c.dropout);
    const int64_t N = c.batch * c.length;
    const auto qkv = random_floats({N, c.H + 2 * c.K, c.D}, 1);
    AttentionOptions options{.batch = c.batch, .scale = 0.3, .window = c.window, .softcap = c.softcap};
    options.dropout = c.dropout, options.dropout_key = {7, 8, 3};
    if (c.segments) options.segments = at::arange(N, at::kInt).remainder(c.length).floor_divide(17).to(at::kInt);
    const auto parts = [&](const at::Tensor& x) {
      return Tensors{x.narrow(1, 0, c.H), x.narrow(1, c.H, c.K), x.narrow(1, c.H + c.K, c.K)};
    };
    auto device = [&](const Tensors& in) {
      const auto p = parts(in[0]);
      return Tensors{aten::attention(p[0], p[1], p[2], options, at::kFloat)};
    };
    auto twin = [&](const Tensors& in) {
      const auto p = parts(in[0]);
      return Tensors{ref::attention(p[0], p[1], p[2], options)};
    };
    const auto dout = random_floats({N, c.H * c.D}, 2);
    expect_close(device({qkv})[0], twin({qkv.to(at::kDouble)})[0], 4e-6, name);
    const auto leaf = qkv.clone().requires_grad_(true);
    const auto gradient = torch::autograd::grad({device({leaf})[0]}, {leaf}, {dout})[0];
    expect_close(gradient, oracle_gradients(twin, {qkv}, {dout})[0], 1e-5, name + " gradient");
  }
}

TEST(AtenDropout, DropsWhatTheCpuDrops) {
  for (const DropoutKey& key : {DropoutKey{1, 2, 0}, DropoutKey{0xFEDCBA9876543210u, 0x89ABCDEF01234567u, 123456}}) {
    for (auto [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {5, 64}, {7, 100}, {3, 257}})
      EXPECT_TRUE(
          same_bits(aten::dropout_mask(rows, columns, 0.3, key, at::kCPU), ref::dropout_mask(rows, columns, 0.3, key)))
          << rows << " " << columns;
    for (auto [batch, heads, length] : {std::array<int64_t, 3>{1, 1, 1}, {2, 3, 40}, {1, 2, 130}})
      EXPECT_TRUE(same_bits(aten::attention_dropout_mask(batch, heads, length, 0.1, key, at::kCPU),
                            ref::attention_dropout_mask(batch, heads, length, 0.1, key)))
          << batch << " " << heads << " " << length;
  }
}

TEST(AtenEmbedding, AddsEqualRowsUp) {
  const auto ids = random_ids(300, 0, 20, 1), dy = random_floats({300, 24}, 2);
  const auto got = at::ones({20, 24}), expected = at::ones({20, 24});
  aten::embedding_backward_(got, dy, ids, 0.5);
  embedding_backward_(expected, dy, ids, 0.5);
  expect_close(got, expected, 4e-6, "embedding");
}

// The whole model, loss and every gradient: the way of a GPU against the plain twins and the CPU's kernels.
TEST(AtenDecoder, ComputesWhatTheTwinsCompute) {
  using models::Decoder;
  for (const char* family : {"llama", "gpt2", "gpt_neox", "gemma3_text", "olmo2", "qwen3", "mistral"})
    for (const double dropout : {0.0, 0.2})
      for (const auto products : {at::kFloat, at::kBFloat16}) {
        nlohmann::ordered_json json{
            {"model_type", family},         {"vocab_size", 61},       {"hidden_size", 32},
            {"intermediate_size", 40},      {"num_hidden_layers", 3}, {"num_attention_heads", 4},
            {"max_position_embeddings", 64}};
        if (family == std::string("gpt2"))
          json = {{"model_type", family}, {"vocab_size", 61}, {"n_embd", 32},
                  {"n_layer", 3},         {"n_head", 4},      {"n_positions", 64}};
        if (family == std::string("gemma3_text")) json["sliding_window"] = 9;
        if (json.contains("hidden_size") && family != std::string("gpt_neox")) json["num_key_value_heads"] = 2;
        const std::string name = fmt::format("{} dropout {} {}", family, dropout, c10::toString(products));
        struct Result {
          models::Loss loss;
          at::Tensor gradient;
        };
        const auto run = [&](bool aten, bool reference) {
          Decoder decoder(models::decoder_config(json, true));
          decoder.parameters().initialise(5);
          const at::Tensor gradient = at::zeros_like(decoder.parameters().flat());
          decoder.parameters().bind_gradients(gradient);
          models::Pass pass{.batch = 2, .length = 24};
          pass.positions = at::arange(24, at::kInt).repeat({2});
          pass.segments = at::arange(48, at::kInt).remainder(24).floor_divide(10).to(at::kInt);
          pass.aten = aten, pass.reference = reference, pass.keep_sums = aten;
          pass.products = products, pass.dropout = dropout, pass.dropout_seed = 11, pass.step = 4;
          models::Loss loss =
              decoder.loss(random_ids(48, 0, 61, 1), random_ids(48, -1, 61, 2), pass, 1.0 / 48, 1e-4, true);
          if (loss.sums.defined()) loss.nll = loss.sums[0].item<double>(), loss.z = loss.sums[1].item<double>();
          return Result{loss, gradient};
        };
        const Result device = run(true, false), twin = run(false, true);
        const double tight = products == at::kFloat ? 1e-5 : 3e-2;
        EXPECT_TRUE(device.loss.sums.defined());
        EXPECT_NEAR(device.loss.nll, twin.loss.nll, tight * twin.loss.nll) << name;
        EXPECT_NEAR(device.loss.z, twin.loss.z, tight * twin.loss.z) << name;
        EXPECT_LT((device.gradient - twin.gradient).norm().item<double>(), tight * twin.gradient.norm().item<double>())
            << name;
      }
}

}  // namespace
}  // namespace cairn::kernels
