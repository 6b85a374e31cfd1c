// Latent attention and the lightning indexer inside whole models. Numbers against transformers:
// tests/oracles/parity_test.py.
#include <gtest/gtest.h>

#include "models/decoder.h"
#include "models/families/family.h"
#include "models/kernels/ref/index_loss.h"
#include "models/kernels/ref/rope.h"
#include "models/layers/measured.h"
#include "tests/models/kernel_checks.h"

namespace cairn::models {
namespace {

using nlohmann::ordered_json;
using Mode = IndexerPass::Mode;
constexpr int64_t kBatch = 2, kLength = 29, kVocabulary = 61, kTopk = 9;

ordered_json latent(const std::string& model_type) {
  ordered_json json{
      {"model_type", model_type},     {"vocab_size", kVocabulary}, {"hidden_size", 32}, {"intermediate_size", 40},
      {"num_hidden_layers", 4},       {"num_attention_heads", 3},  {"q_lora_rank", 20}, {"kv_lora_rank", 12},
      {"qk_nope_head_dim", 10},       {"qk_rope_head_dim", 6},     {"v_head_dim", 14},  {"first_k_dense_replace", 4},
      {"max_position_embeddings", 64}};
  if (model_type != "deepseek_v3") json.update({{"index_topk", kTopk}, {"index_n_heads", 16}, {"index_head_dim", 8}});
  return json;
}
ordered_json ordinary(const std::string& model_type) {
  return {
      {"model_type", model_type}, {"vocab_size", kVocabulary}, {"hidden_size", 32},    {"intermediate_size", 40},
      {"num_hidden_layers", 3},   {"num_attention_heads", 4},  {"head_dim", 8},        {"index_topk", kTopk},
      {"num_key_value_heads", 2}, {"index_n_heads", 16},       {"index_head_dim", 12}, {"max_position_embeddings", 64}};
}
// GLM's sharing: blocks 0, then 1 to 3 on the set of block 1.
ordered_json shared() {
  ordered_json json = latent("glm_moe_dsa");
  json["indexer_types"] = {"full", "full", "shared", "shared"};
  return json;
}

struct Model {
  explicit Model(const ordered_json& json, at::ScalarType type = at::kFloat)
      : decoder(decoder_config(json, true), type) {
    decoder.parameters().initialise(5);
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    for (const Parameter& p : decoder.parameters().all()) {
      const double spread = p.role == Role::norm || p.role == Role::bias ? 0.1 : p.role == Role::matrix ? 0.15 : 0.3;
      p.value().add_(at::randn(p.value().sizes(), generator) * spread);
    }
    grad = at::zeros_like(decoder.parameters().flat());
    decoder.parameters().bind_gradients(grad);
    ids = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
    targets = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
    pass.batch = kBatch, pass.length = kLength;
    pass.positions = at::arange(kLength, at::kInt).repeat({kBatch});
    pass.row_scale = 1.0 / pass.rows(), pass.query_scale = 1.0 / (kBatch * (kLength - 1));
  }
  double loss(double scale = 1.0 / (kBatch * kLength)) {
    grad.zero_();
    return decoder.loss(ids, targets, pass, scale, 0, true).nll;
  }
  at::Tensor hidden() {
    at::NoGradGuard no_grad;
    return decoder.hidden(ids, pass);
  }
  // The gradients of one group, in one row.
  at::Tensor gradients(Group group) const {
    std::vector<at::Tensor> all;
    for (const Parameter& p : decoder.parameters().all())
      if (p.group == group) all.push_back(p.grad().flatten());
    return at::cat(all).clone();
  }
  void two_documents() {
    pass.segments = at::arange(kLength, at::kInt).ge(11).to(at::kInt).repeat({kBatch});
    pass.positions = pass.positions - 11 * pass.segments;
  }

  Decoder decoder;
  at::Tensor grad, ids, targets;
  Pass pass;
};

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm().clamp_min(1e-30)).item<double>();
}

const ordered_json kSparse[] = {latent("deepseek_v32"), shared(), ordinary("llama_dsa"), ordinary("qwen3_dsa")};

// Decoded in pieces: one at a time, three at once.
at::Tensor decoded(Model& model, int64_t prompt) {
  at::NoGradGuard no_grad;
  SequenceCache cache = model.decoder.make_cache(kLength);
  std::vector<at::Tensor> pieces;
  for (int64_t at = 0; at < kLength;) {
    const int64_t length = std::min(kLength - at, at == 0 ? prompt : at % 4 == 0 ? int64_t{3} : int64_t{1});
    Pass step = model.pass;
    step.batch = 1, step.length = length, step.segments = at::Tensor();
    step.positions = at::arange(at, at + length, at::kInt);
    step.cache = &cache;
    pieces.push_back(model.decoder.hidden(model.ids.narrow(0, at, length).contiguous(), step));
    at += length;
  }
  return at::cat(pieces);
}

TEST(Mla, AbsorbedFormIsTheExpandedOne) {
  for (const bool reference : {false, true}) {
    Model model(latent("deepseek_v3"));
    model.pass.reference = reference;
    const at::Tensor whole = model.hidden().narrow(0, 0, kLength);
    for (const int64_t prompt : {1, 10}) EXPECT_LT(distance(decoded(model, prompt), whole), 1e-5) << reference;
  }
}

TEST(Mla, SelectingEverythingIsTheDenseModel) {
  // Absorbed attention over a set that holds all keys, against expanded attention: outputs and gradients.
  ordered_json json = latent("deepseek_v32");
  json["index_topk"] = kLength;
  for (const bool documents : {false, true}) {
    Model sparse(json), dense(json);
    if (documents) sparse.two_documents(), dense.two_documents();
    dense.pass.indexer.mode = Mode::dense;
    EXPECT_NEAR(sparse.loss(), dense.loss(), 1e-3);
    EXPECT_LT(distance(sparse.grad, dense.grad), 2e-5);
    EXPECT_GT(dense.grad.norm().item<double>(), 0);
  }
}

TEST(Mla, WidthsOfKeysAndValuesMayDiffer) {
  for (const int64_t width : {4, 16, 20}) {
    ordered_json json = latent("deepseek_v3");
    json["v_head_dim"] = width;
    Model fast(json), plain(json);
    plain.pass.reference = true;
    EXPECT_NEAR(fast.loss(), plain.loss(), 1e-3);
    EXPECT_LT(distance(fast.grad, plain.grad), 2e-5) << width;
  }
}

TEST(LightningIndexer, FastIsTheTwin) {
  for (const ordered_json& json : kSparse) {
    for (const Mode mode : {Mode::warmup, Mode::sparse}) {
      Model fast(json), plain(json);
      for (Model* model : {&fast, &plain}) {
        model->two_documents();
        model->pass.indexer.mode = mode, model->pass.indexer.train = true;
      }
      plain.pass.reference = true;
      EXPECT_NEAR(fast.loss(), plain.loss(), 1e-3);
      EXPECT_LT(distance(fast.gradients(Group::model), plain.gradients(Group::model)), 2e-5) << json["model_type"];
      EXPECT_LT(distance(fast.gradients(Group::indexer), plain.gradients(Group::indexer)), 2e-5) << json["model_type"];
    }
  }
}

TEST(LightningIndexer, DecodingChoosesAsTheWholeSequenceDoes) {
  for (const ordered_json& json : kSparse) {
    for (const bool reference : {false, true}) {
      Model model(json);
      model.pass.reference = reference;
      model.pass.indexer.sinks = 2, model.pass.indexer.window = 3;
      const at::Tensor whole = model.hidden().narrow(0, 0, kLength);
      for (const int64_t prompt : {1, 10})
        EXPECT_LT(distance(decoded(model, prompt), whole), 1e-5) << json["model_type"];
    }
  }
}

TEST(LightningIndexer, LearnsFromItsOwnLossAlone) {
  for (const ordered_json& json : kSparse) {
    for (const Mode mode : {Mode::warmup, Mode::sparse}) {
      for (const bool reference : {false, true}) {
        Model model(json);
        model.pass.reference = reference;
        model.pass.indexer.mode = mode;
        model.loss();  // the language model's loss alone
        EXPECT_EQ(model.gradients(Group::indexer).abs().max().item<double>(), 0);
        const at::Tensor without = model.gradients(Group::model);
        EXPECT_GT(without.norm().item<double>(), 0);

        model.pass.indexer.train = true;
        model.loss();
        EXPECT_GT(model.gradients(Group::indexer).norm().item<double>(), 0);
        EXPECT_TRUE(kernels::testing::same_bits(model.gradients(Group::model), without)) << json["model_type"];

        model.loss(0);  // the indexer's loss alone
        EXPECT_EQ(model.gradients(Group::model).abs().max().item<double>(), 0);
        EXPECT_GT(model.gradients(Group::indexer).norm().item<double>(), 0);
      }
    }
  }
}

TEST(LightningIndexer, AFrozenModelWarmsUp) {
  for (const ordered_json& json : kSparse) {
    Model whole(json), frozen(json);
    for (const Parameter& p : frozen.decoder.parameters().all())
      if (p.group == Group::model) at::Tensor(p.leaf).set_requires_grad(false);
    for (Model* model : {&whole, &frozen}) model->pass.indexer.mode = Mode::warmup, model->pass.indexer.train = true;
    for (const bool checkpointing : {false, true}) {
      frozen.decoder.set_activation_checkpointing(checkpointing);
      EXPECT_EQ(frozen.loss(), whole.loss());
      EXPECT_TRUE(kernels::testing::same_bits(frozen.gradients(Group::indexer), whole.gradients(Group::indexer)));
      // A pass without gradients has those of the indexer, if it asks for them.
      frozen.grad.zero_();
      frozen.decoder.loss(frozen.ids, frozen.targets, frozen.pass, 1, 0, false);
      EXPECT_TRUE(kernels::testing::same_bits(frozen.gradients(Group::indexer), whole.gradients(Group::indexer)));
    }
  }
}

TEST(LightningIndexer, ActivationCheckpointingChangesNoBit) {
  for (const ordered_json& json : kSparse) {
    for (const Mode mode : {Mode::warmup, Mode::sparse}) {
      Model model(json);
      Measured once, twice;
      model.pass.indexer.mode = mode, model.pass.indexer.train = true;
      model.pass.measured = &once;
      model.loss();
      const at::Tensor kept = model.grad.clone();
      model.decoder.set_activation_checkpointing(true);
      model.pass.measured = &twice;
      model.loss();
      EXPECT_TRUE(kernels::testing::same_bits(model.grad, kept)) << json["model_type"];
      ASSERT_EQ(once.sums.size(), twice.sums.size());
      for (const auto& [key, sum] : once.sums) EXPECT_EQ(twice.sums.at(key).sum, sum.sum) << key.first;
    }
  }
}

TEST(LightningIndexer, ThreadsChangeNoBits) {
  for (const ordered_json& json : kSparse) {
    Model model(json);
    model.pass.indexer.train = true;
    at::Tensor first;
    for (const int threads : {1, 2, 3}) {
      const kernels::testing::Threads guard(threads);
      model.loss();
      if (!first.defined()) first = model.grad.clone();
      EXPECT_TRUE(kernels::testing::same_bits(model.grad, first)) << threads;
    }
  }
}

// The written formula, by autograd, for one block of a llama: attention's input, both RoPEs, the sum over heads, the
// normalisation, softmax over the candidates.
TEST(LightningIndexer, GradientIsThatOfTheWrittenFormula) {
  ordered_json json = ordinary("llama_dsa");
  json["num_hidden_layers"] = 1;
  Model model(json, at::kDouble);
  model.pass.products = at::kDouble;
  model.pass.indexer.mode = Mode::warmup, model.pass.indexer.train = true;
  model.loss();

  const Parameters& parameters = model.decoder.parameters();
  const std::string layer = "model.layers.0.self_attn.";
  const auto weight = [&](const std::string& name) { return parameters.at(name).value(); };
  const int64_t N = kBatch * kLength, T = kLength;
  const at::Tensor embedded = weight("model.embed_tokens.weight").index_select(0, model.ids);
  const at::Tensor x =
      embedded * at::rsqrt(embedded.square().mean(-1, true) + 1e-6) * weight("model.layers.0.input_layernorm.weight");
  const RopeConfig rope = *model.decoder.config().blocks[0].attention.rope;
  auto [cos, sin] = RopeTable(rope).get(T, at::kCPU);
  const auto turned = [&, cos = cos, sin = sin](const at::Tensor& y, int64_t heads) {
    return kernels::ref::rope(y.view({N, heads, -1}), model.pass.positions, cos, sin, false)
        .view({kBatch, T, heads, -1});
  };
  at::Tensor wq = weight(layer + "indexer.wq.weight").clone().requires_grad_(),
             wk = weight(layer + "indexer.wk.weight").clone().requires_grad_(),
             ww = weight(layer + "indexer.weights_proj.weight").clone().requires_grad_(),
             g = weight(layer + "indexer.k_norm.weight").clone().requires_grad_(),
             b = weight(layer + "indexer.k_norm.bias").clone().requires_grad_();
  const at::Tensor raw = x.mm(wk.t()), centred = raw - raw.mean(-1, true);
  const at::Tensor key = centred * at::rsqrt(centred.square().mean(-1, true) + 1e-6) * g + b;
  const at::Tensor q = turned(x.mm(wq.t()), 16), k = turned(key, 1).squeeze(2), w = x.mm(ww.t()).view({kBatch, T, 16});
  const at::Tensor dots = at::relu(at::einsum("btjd,bsd->btjs", {q, k}));
  const at::Tensor causal = at::ones({T, T}, at::kBool).tril();
  const at::Tensor scores = at::einsum("btjs,btj->bts", {dots, w}) / std::sqrt(16.0 * 12.0);
  const at::Tensor log_q = at::log_softmax(scores.masked_fill(causal.logical_not(), -1e30), -1);

  at::Tensor p;
  {
    at::NoGradGuard no_grad;
    const at::Tensor aq = turned(x.mm(weight(layer + "q_proj.weight").t()), 4),
                     ak = turned(x.mm(weight(layer + "k_proj.weight").t()), 2).repeat_interleave(2, 2);
    const at::Tensor logits = at::einsum("bthd,bshd->bhts", {aq, ak}) / std::sqrt(8.0);
    p = at::softmax(logits.masked_fill(causal.logical_not(), -1e30), -1).sum(1) / 4;
  }
  const at::Tensor kl =
      (at::xlogy(p, p) - p * log_q.masked_fill(causal.logical_not(), 0)).sum(-1).narrow(1, 1, T - 1).mean();
  torch::autograd::backward({kl}, {});
  const std::vector<std::pair<std::string, at::Tensor>> expected{
      {"wq.weight", wq}, {"wk.weight", wk}, {"weights_proj.weight", ww}, {"k_norm.weight", g}, {"k_norm.bias", b}};
  for (const auto& [name, leaf] : expected)
    EXPECT_LT(distance(parameters.at(layer + "indexer." + name).grad(), leaf.grad()), 1e-5) << name;  // RoPE is float32
}

TEST(LightningIndexer, HadamardRotationLeavesTheScores) {
  ordered_json json = latent("deepseek_v32");
  Model plain(json);
  json["index_hadamard"] = true;
  Model turned(json);
  EXPECT_LT(distance(turned.hidden(), plain.hidden()), 1e-5);
  plain.pass.indexer.train = turned.pass.indexer.train = true;
  plain.loss(), turned.loss();
  EXPECT_LT(distance(turned.gradients(Group::indexer), plain.gradients(Group::indexer)), 1e-4);
}

TEST(LightningIndexer, Measures) {
  Model model(shared());
  Measured trained, evaluated;
  model.pass.indexer.train = true;
  model.pass.measured = &trained;
  model.loss();
  EXPECT_GT(trained.sums.at({"index_kl", 0}).sum, 0);
  EXPECT_EQ(trained.sums.at({"index_kl", 0}).weight, kBatch * (kLength - 1));
  EXPECT_TRUE(trained.sums.contains({"index_kl", 1}));
  EXPECT_FALSE(trained.sums.contains({"index_kl", 2}));  // uses the set of block 1
  model.pass.indexer.train = false;
  model.pass.measured = &evaluated;
  model.hidden();
  const auto& recall = evaluated.sums.at({"index_recall", 0});
  EXPECT_GT(recall.sum, 0);
  EXPECT_LE(recall.sum, recall.weight);
  EXPECT_EQ(evaluated.sums.at({"index_mass", 0}).weight, kBatch * (kLength - kTopk));
  const double places = evaluated.sums.at({"index_sinks", 0}).sum + evaluated.sums.at({"index_window", 0}).sum +
                        evaluated.sums.at({"index_far", 0}).sum;
  EXPECT_EQ(places, evaluated.sums.at({"index_far", 0}).weight);
}

TEST(SparseFamilies, RefuseWhatMakesNoSense) {
  const auto refused = [](ordered_json json, const char* key, const ordered_json& value, const char* named) {
    json[key] = value;
    try {
      decoder_config(json, true);
      ADD_FAILURE() << key << " was taken";
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.key, named) << error.what();
    }
  };
  const ordered_json v32 = latent("deepseek_v32"), llama = ordinary("llama_dsa");
  refused(v32, "index_topk", 0, "index_topk");
  refused(llama, "index_topk", 0, "index_topk");
  refused(v32, "index_head_dim", 4, "index_head_dim");
  refused(llama, "index_head_dim", 6, "index_head_dim");
  refused(v32, "q_lora_rank", nullptr, "q_lora_rank");
  refused(v32, "num_key_value_heads", 1, "num_key_value_heads");
  refused(v32, "head_dim", 16, "head_dim");
  refused(v32, "dropout", 0.1, "dropout");
  refused(v32, "layer_types", {"full_attention", "indexed_attention", "indexed_attention", "indexed_attention"},
          "layer_types");
  refused(shared(), "indexer_types", {"shared", "full", "full", "full"}, "indexer_types");
  refused(shared(), "indexer_types", {"full"}, "indexer_types");
  refused(latent("deepseek_v3"), "index_topk", 4, "index_topk");  // a family without an indexer
  ordered_json plain = ordinary("llama_dsa");
  plain["model_type"] = "llama";
  refused(plain, "index_topk", 4, "index_topk");
  ordered_json windowed = ordinary("qwen3_dsa");
  windowed["use_sliding_window"] = true, windowed["max_window_layers"] = 1;
  refused(windowed, "sliding_window", 5, "sliding_window");
}

TEST(SparseFamilies, LayersThatShareFollowTransformersRules) {
  const auto owners = [](const ordered_json& keys) {
    ordered_json json = latent("glm_moe_dsa");
    json["num_hidden_layers"] = 8, json["first_k_dense_replace"] = 8;
    if (!keys.is_null()) json.update(keys);
    std::string text;
    const DecoderConfig config = decoder_config(json, true);
    for (const BlockConfig& block : config.blocks) text += block.indexer->owns() ? 'F' : 'S';
    return text;
  };
  EXPECT_EQ(owners({}), "FFFFFFFF");
  EXPECT_EQ(owners({{"index_topk_freq", 4}}), "FFSSSFSS");  // max(i - 1, 0) % 4
  EXPECT_EQ(owners({{"index_topk_freq", 3}, {"index_skip_topk_offset", 4}}), "FFFFSSFS");
  EXPECT_EQ(owners({{"index_topk_pattern", "FSFSSFFS"}}), "FSFSSFFS");
}

}  // namespace
}  // namespace cairn::models
