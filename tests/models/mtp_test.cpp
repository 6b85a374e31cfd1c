// Modules that predict further tokens, against the formula written out. Numbers against transformers' blocks:
// tests/oracles/mtp_test.py.
#include "models/mtp.h"

#include <gtest/gtest.h>

#include <set>

#include "models/families/family.h"
#include "models/layers/measured.h"

namespace cairn::models {
namespace {

using nlohmann::ordered_json;
constexpr int64_t kBatch = 2, kLength = 24, kVocabulary = 61;

// Every family that has modules; its last block has experts where `experts` says so.
ordered_json json_of(const std::string& model_type, int64_t modules, bool experts = false) {
  ordered_json json{{"model_type", model_type},      {"vocab_size", kVocabulary},   {"hidden_size", 32},
                    {"intermediate_size", 40},       {"num_hidden_layers", 2},      {"num_attention_heads", 4},
                    {"max_position_embeddings", 64}, {"tie_word_embeddings", false}};
  if (modules) json["num_nextn_predict_layers"] = modules;
  if (model_type == "qwen3_next") {
    json.update({{"num_experts", experts ? 6 : 0},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 12},
                 {"shared_expert_intermediate_size", 12},
                 {"num_key_value_heads", 2},
                 {"head_dim", 16},
                 {"layer_types", {"full_attention", "linear_attention"}},
                 {"linear_num_key_heads", 2},
                 {"linear_num_value_heads", 4},
                 {"linear_key_head_dim", 8},
                 {"linear_value_head_dim", 12}});
    return json;
  }
  json.update({{"n_routed_experts", 6},
               {"num_experts_per_tok", 2},
               {"moe_intermediate_size", 12},
               {"n_group", 1},
               {"topk_group", 1},
               {"first_k_dense_replace", experts ? 1 : 9}});
  if (model_type == "glm4_moe") {
    json.update({{"num_key_value_heads", 2}, {"head_dim", 8}, {"use_qk_norm", true}});
    return json;
  }
  json.update({{"q_lora_rank", 20},
               {"kv_lora_rank", 12},
               {"qk_nope_head_dim", 10},
               {"qk_rope_head_dim", 6},
               {"v_head_dim", 14}});
  if (model_type != "deepseek_v3") json.update({{"index_topk", 9}, {"index_n_heads", 16}, {"index_head_dim", 8}});
  if (model_type == "glm_moe_dsa") json["indexer_types"] = {"full", "shared"};
  return json;
}
const char* const kFamilies[] = {"deepseek_v3", "deepseek_v32", "glm4_moe", "glm_moe_dsa", "qwen3_next"};
int64_t most(const std::string& family) { return family == "qwen3_next" ? 1 : 2; }

struct Model {
  explicit Model(const ordered_json& json, double dropout = 0) : decoder(decoder_config(json, true)) {
    decoder.parameters().initialise(5);
    for (const Parameter& p : decoder.parameters().all()) {
      const double spread = p.role == Role::norm || p.role == Role::bias ? 0.1 : 0.15;
      // By name, so that a model with modules and one without agree in what they share.
      auto generator = at::make_generator<at::CPUGeneratorImpl>(std::hash<std::string>{}(p.name));
      p.value().add_(at::randn(p.value().sizes(), generator) * spread);
    }
    grad = at::zeros_like(decoder.parameters().flat());
    decoder.parameters().bind_gradients(grad);
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    const at::Tensor tokens = at::randint(0, kVocabulary, {kBatch, kLength + 1}, generator).to(at::kInt);
    ids = tokens.narrow(1, 0, kLength).reshape({-1}), targets = tokens.narrow(1, 1, kLength).reshape({-1});
    pass.batch = kBatch, pass.length = kLength;
    pass.positions = at::arange(kLength, at::kInt).repeat({kBatch});
    pass.dropout = dropout, pass.dropout_seed = 11, pass.step = 4;
    pass.row_scale = 1.0 / pass.rows(), pass.query_scale = 1.0 / (kBatch * (kLength - 1));
    for (int64_t m = 0; m < decoder.mtp_modules(); ++m) scales.push_back(0.02 / static_cast<double>(m + 1));
  }
  // Each row holds two documents, the second from position 10 on.
  void two_documents() {
    pass.segments = at::arange(kLength, at::kInt).ge(10).to(at::kInt).repeat({kBatch});
    pass.positions = pass.positions - 10 * pass.segments;
    targets = targets.clone();
    for (int64_t row = 0; row < kBatch; ++row) targets[row * kLength + 9] = -1;
  }
  Loss loss() {
    grad.zero_();
    return decoder.loss(ids, targets, pass, 0.03, 0, true, scales);
  }

  Decoder decoder;
  at::Tensor grad, ids, targets;
  std::vector<double> scales;
  Pass pass;
};

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm().clamp_min(1e-30)).item<double>();
}

std::vector<int32_t> numbers(const at::Tensor& x) {
  return {x.const_data_ptr<int32_t>(), x.const_data_ptr<int32_t>() + x.numel()};
}

TEST(Mtp, RowsReadAndPredictInsideTheirDocument) {
  // Two sequences of five tokens, the second one of documents of two and three.
  const at::Tensor ids = at::tensor({1, 2, 3, 4, 5, 11, 12, 21, 22, 23}, at::kInt),
                   targets = at::tensor({2, 3, 4, 5, 6, 12, -1, 22, 23, 24}, at::kInt),
                   segments = at::tensor({0, 0, 0, 0, 0, 0, 0, 1, 1, 1}, at::kInt);
  const MtpRows first = mtp_rows(ids, targets, segments, 2, 0), second = mtp_rows(ids, targets, segments, 2, 1);
  EXPECT_EQ(numbers(first.ids), (std::vector<int32_t>{2, 3, 4, 5, 5, 12, 12, 22, 23, 23}));
  EXPECT_EQ(numbers(first.targets), (std::vector<int32_t>{3, 4, 5, 6, -1, -1, -1, 23, 24, -1}));
  EXPECT_EQ(numbers(second.ids), (std::vector<int32_t>{3, 4, 5, 4, 5, 11, 12, 23, 22, 23}));
  EXPECT_EQ(numbers(second.targets), (std::vector<int32_t>{4, 5, 6, -1, -1, -1, -1, 24, -1, -1}));
  // Without segments a row is one document; a target that is not predicted stays so.
  EXPECT_EQ(numbers(mtp_rows(ids, targets, {}, 2, 0).targets),
            (std::vector<int32_t>{3, 4, 5, 6, -1, -1, 22, 23, 24, -1}));
  EXPECT_EQ(numbers(mtp_rows(ids, targets, {}, 2, 6).targets),
            std::vector<int32_t>(10, -1));  // more than a sequence has
  EXPECT_EQ(numbers(ids), (std::vector<int32_t>{1, 2, 3, 4, 5, 11, 12, 21, 22, 23}));
}

// The report's equations 21 to 25 token by token through autograd and the plain twins; the block is one of its own with
// the module's weights.
struct Restated {
  explicit Restated(Model& model) : model(model) {
    const DecoderConfig& config = model.decoder.config();
    for (size_t m = 0; m < config.mtp.size(); ++m) {
      const BlockConfig& block = config.mtp[m];
      const auto& wanted = block.mla ? std::optional(block.mla->rope) : block.attention.rope;
      auto& own = parameters.emplace_back(std::make_unique<Parameters>());
      blocks.push_back(std::make_unique<Block>(*own, fmt::format("mtp.layers.{}", m), config, config.blocks.size() + m,
                                               std::make_shared<RopeTable>(*wanted)));
      own->flatten(at::kFloat, at::kCPU);
      gradients.push_back(at::zeros_like(own->flat()));
      own->bind_gradients(gradients.back());
      for (const Parameter& p : own->all()) p.value().copy_(model.decoder.parameters().at(p.name).value());
      for (const Buffer& b : own->buffers()) b.tensor.copy_(model.decoder.parameters().buffer(b.name).tensor);
    }
  }
  at::Tensor leaf(const std::string& name) const { return model.decoder.parameters().at(name).leaf; }
  at::Tensor rms(const at::Tensor& x, const std::string& name) const {
    const NormConfig& norm = model.decoder.config().norm;
    return x * at::rsqrt(x.square().mean(-1, true) + norm.eps) * (leaf(name + ".weight") + norm.offset);
  }

  // Sum of nll of each head; adds gradients.
  std::vector<double> loss() {
    Pass pass = model.pass;
    pass.reference = true;
    const int32_t *ids = model.ids.const_data_ptr<int32_t>(), *targets = model.targets.const_data_ptr<int32_t>();
    const auto document = [&](int64_t n) {
      return n / kLength * 2 + (pass.segments.defined() ? pass.segments[n].item<int64_t>() : 0);
    };
    at::Tensor h = model.decoder.hidden(model.ids, pass), total = at::zeros({}, at::kFloat);
    std::vector<double> sums;
    for (size_t d = 0; d <= blocks.size(); ++d) {
      if (d > 0) {
        const std::string name = fmt::format("mtp.layers.{}", d - 1);
        std::vector<at::Tensor> inputs;
        for (int64_t n = 0; n < h.size(0); ++n) {
          const bool inside = n + d < h.size(0) && document(n + d) == document(n);
          const at::Tensor e = leaf("model.embed_tokens.weight")[ids[inside ? n + d : n]];
          inputs.push_back(at::cat({rms(e, name + ".enorm"), rms(h[n], name + ".hnorm")}));
        }
        const at::Tensor u = at::matmul(at::stack(inputs), leaf(name + ".eh_proj.weight").t());
        const Block::Stream out = blocks[d - 1]->forward({u, {}}, pass);
        h = rms(out.pending.defined() ? out.x + out.pending : out.x, name + ".shared_head.norm");
      }
      at::Tensor sum = at::zeros({}, at::kFloat);
      for (int64_t n = 0; n < h.size(0); ++n) {
        if (n + d >= h.size(0) || document(n + d) != document(n) || targets[n + d] < 0) continue;
        const at::Tensor logits = at::matmul(leaf("lm_head.weight"), h[n]);
        sum = sum - at::log_softmax(logits, 0)[targets[n + d]];
      }
      sums.push_back(sum.item<double>());
      total = total + sum * (d == 0 ? 0.03 : model.scales[d - 1]);
    }
    torch::autograd::backward({total}, {});
    return sums;
  }

  Model& model;
  std::vector<std::unique_ptr<Parameters>> parameters;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<at::Tensor> gradients;
};

TEST(Mtp, LossAndGradientsAreThoseOfTheFormula) {
  for (const std::string family : kFamilies) {
    for (const bool documents : {false, true}) {
      const bool experts = documents;
      Model fast(json_of(family, most(family), experts)), plain(json_of(family, most(family), experts));
      if (documents) fast.two_documents(), plain.two_documents();
      Restated restated(plain);
      const std::vector<double> expected = restated.loss();
      const Loss loss = fast.loss();
      ASSERT_EQ(loss.mtp.size() + 1, expected.size());
      EXPECT_NEAR(loss.nll, expected[0], 1e-4 * expected[0]) << family;
      for (size_t m = 0; m < loss.mtp.size(); ++m)
        EXPECT_NEAR(loss.mtp[m].nll, expected[m + 1], 1e-4 * expected[m + 1]) << family;
      for (const Parameter& p : fast.decoder.parameters().all()) {
        if (p.group == Group::indexer) continue;
        at::Tensor other = plain.decoder.parameters().at(p.name).grad();
        for (const auto& own : restated.parameters) {
          for (const Parameter& q : own->all())
            if (q.name == p.name) other = q.grad();
        }
        // An expert that nothing was sent to has none on both sides.
        if (other.norm().item<double>() == 0) {
          EXPECT_EQ(p.grad().norm().item<double>(), 0) << family << ": " << p.name;
          continue;
        }
        EXPECT_LT(distance(p.grad(), other), 2e-3) << family << (documents ? ", documents: " : ": ") << p.name;
      }
    }
  }
}

TEST(Mtp, TheTrunkKeepsEveryBit) {
  for (const std::string family : kFamilies) {
    Model with(json_of(family, most(family), true)), without(json_of(family, 0, true));
    {
      at::NoGradGuard no_grad;
      EXPECT_TRUE(
          at::equal(with.decoder.hidden(with.ids, with.pass), without.decoder.hidden(without.ids, without.pass)))
          << family;
    }
    with.scales.clear();  // nobody asks for the modules' loss
    const Loss a = with.loss(), b = without.loss();
    EXPECT_EQ(a.nll, b.nll);
    EXPECT_TRUE(a.mtp.empty());
    for (const Parameter& p : with.decoder.parameters().all()) {
      if (p.name.starts_with("mtp."))
        EXPECT_EQ(p.grad().abs().sum().item<double>(), 0) << family << ": " << p.name;
      else
        EXPECT_TRUE(at::equal(p.grad(), without.decoder.parameters().at(p.name).grad())) << family << ": " << p.name;
    }
    EXPECT_THROW(with.decoder.loss(with.ids, with.targets, with.pass, 1, 0, true, {0.1, 0.1, 0.1}),
                 std::invalid_argument);
    if (family == "qwen3_next") continue;
    Model again(json_of(family, 2, true));
    EXPECT_EQ(again.loss().nll, b.nll);
  }
}

// Documents packed into a row give what they give alone.
TEST(Mtp, PackedDocumentsKnowNothingOfEachOther) {
  for (const std::string family : kFamilies) {
    Model packed(json_of(family, most(family))), alone(json_of(family, most(family)));
    packed.two_documents(), alone.two_documents();
    const Loss whole = packed.loss();
    std::vector<double> sums(whole.mtp.size());
    alone.grad.zero_();
    for (const auto& [begin, length] : {std::pair<int64_t, int64_t>{0, 10}, {10, 14}}) {
      Pass pass = alone.pass;
      pass.length = length, pass.segments = at::Tensor();
      pass.positions = at::arange(length, at::kInt).repeat({kBatch});
      const auto cut = [&, begin = begin, length = length](const at::Tensor& x) {
        return x.view({kBatch, kLength}).narrow(1, begin, length).reshape({-1});
      };
      const Loss part = alone.decoder.loss(cut(alone.ids), cut(alone.targets), pass, 0.03, 0, true, alone.scales);
      for (size_t m = 0; m < sums.size(); ++m) sums[m] += part.mtp[m].nll;
    }
    for (size_t m = 0; m < sums.size(); ++m) EXPECT_NEAR(whole.mtp[m].nll, sums[m], 1e-4 * sums[m]) << family;
    for (const Parameter& p : packed.decoder.parameters().all()) {
      if (p.group == Group::indexer || !p.name.starts_with("mtp.")) continue;
      EXPECT_LT(distance(p.grad(), alone.decoder.parameters().at(p.name).grad()), 1e-3) << family << ": " << p.name;
    }
  }
}

TEST(Mtp, ActivationCheckpointingAndASecondRunChangeNoBit) {
  for (const std::string family : kFamilies) {
    const double dropout = family == "deepseek_v32" || family == "glm_moe_dsa" ? 0 : 0.2;  // none beside an indexer
    Model plain(json_of(family, most(family), true), dropout), recomputed(json_of(family, most(family), true), dropout);
    recomputed.decoder.set_activation_checkpointing(true);
    const Loss a = plain.loss(), b = recomputed.loss();
    EXPECT_EQ(a.nll, b.nll);
    EXPECT_EQ(a.mtp[0].nll, b.mtp[0].nll);
    EXPECT_TRUE(at::equal(plain.grad, recomputed.grad)) << family;
    const at::Tensor once = plain.grad.clone();
    plain.loss();
    EXPECT_TRUE(at::equal(plain.grad, once)) << family;
  }
}

TEST(Mtp, LibTorchsOperatorsGiveTheSame) {
  for (const std::string family : {"deepseek_v3", "glm4_moe", "qwen3_next"}) {
    Model fast(json_of(family, most(family), true)), aten(json_of(family, most(family), true));
    aten.pass.aten = true;
    const Loss a = fast.loss(), b = aten.loss();
    for (size_t m = 0; m < a.mtp.size(); ++m) EXPECT_NEAR(a.mtp[m].nll, b.mtp[m].nll, 1e-4 * a.mtp[m].nll) << family;
    EXPECT_LT(distance(aten.grad, fast.grad), 1e-4) << family;
    // What a GPU leaves on the device: the model's sums, then each module's.
    aten.pass.keep_sums = true;
    const Loss kept = aten.loss();
    ASSERT_EQ(kept.sums.numel(), 3 * (1 + static_cast<int64_t>(a.mtp.size())));
    EXPECT_EQ(kept.sums[3].item<double>(), b.mtp[0].nll);
    EXPECT_EQ(kept.sums[5].item<double>(), static_cast<double>(b.mtp[0].correct));
  }
}

// Data parallelism sends a block's gradients on its way when after_backward names it: they have to be complete then.
struct Recorder : Seams {
  void after_backward(int64_t block) const override {
    order->push_back(block);
    if (block < 0 || block > 1) return;
    for (const Parameter& p : model->decoder.parameters().all())
      if (p.name.starts_with(fmt::format("model.layers.{}.", block))) complete->emplace(p.name, p.grad().clone());
  }
  Model* model = nullptr;
  std::shared_ptr<std::vector<int64_t>> order = std::make_shared<std::vector<int64_t>>();
  std::shared_ptr<std::map<std::string, at::Tensor>> complete = std::make_shared<std::map<std::string, at::Tensor>>();
};

TEST(Mtp, BlocksOfTheTrunkAreMetOnce) {
  for (const std::string family : kFamilies) {
    Model model(json_of(family, most(family)));
    Recorder recorder;
    recorder.model = &model;
    model.pass.seams = &recorder;
    model.loss();
    std::vector<int64_t> trunk;
    for (const int64_t block : *recorder.order)
      if (block == 0 || block == 1) trunk.push_back(block);
    EXPECT_EQ(trunk, (std::vector<int64_t>{1, 0})) << family;
    EXPECT_FALSE(recorder.complete->empty());
    for (const auto& [name, value] : *recorder.complete)
      EXPECT_TRUE(at::equal(value, model.decoder.parameters().at(name).grad())) << family << ": " << name;
  }
}

TEST(Mtp, InPiecesThroughACache) {
  for (const std::string family : kFamilies) {
    Model model(json_of(family, most(family), true));
    at::NoGradGuard no_grad;
    const auto row = [](const at::Tensor& x) { return x.narrow(0, 0, kLength).contiguous(); };
    Pass pass = model.pass;
    pass.batch = 1, pass.positions = row(pass.positions);
    at::Tensor hidden = model.decoder.hidden(row(model.ids), pass);
    for (int64_t m = 0; m < model.decoder.mtp_modules(); ++m) {
      const at::Tensor ids = mtp_rows(row(model.ids), row(model.targets), {}, 1, m).ids;
      const at::Tensor whole = model.decoder.mtp_hidden(m, hidden, ids, pass);
      SequenceCache cache = model.decoder.make_mtp_cache(m, kLength);
      std::vector<at::Tensor> pieces;
      for (int64_t at = 0; at < kLength;) {
        const int64_t n = at == 0 ? 11 : std::min<int64_t>(3, kLength - at);
        Pass step;
        step.length = n, step.positions = at::arange(at, at + n, at::kInt), step.cache = &cache;
        pieces.push_back(model.decoder.mtp_hidden(m, hidden.narrow(0, at, n), ids.narrow(0, at, n).contiguous(), step));
        at += n;
      }
      EXPECT_EQ(cache.length, kLength);
      EXPECT_LT(distance(at::cat(pieces), whole), 1e-4) << family;
      hidden = whole;
    }
  }
}

TEST(Mtp, AnIndexerInAModuleLearnsBesideTheOthers) {
  for (const std::string family : {"deepseek_v32", "glm_moe_dsa"}) {
    for (const bool trains_model : {false, true}) {  // a warm-up trains the indexer alone
      Model model(json_of(family, 1));
      Measured measured;
      model.pass.measured = &measured;
      model.pass.indexer = {.mode = trains_model ? IndexerPass::Mode::sparse : IndexerPass::Mode::warmup,
                            .train = true};
      model.decoder.loss(model.ids, model.targets, model.pass, 0.03, 0, trains_model, model.scales);
      EXPECT_TRUE(measured.sums.contains({"index_kl", 2})) << family;
      const auto& p = model.decoder.parameters().at("mtp.layers.0.self_attn.indexer.wk.weight");
      EXPECT_GT(p.grad().norm().item<double>(), 0) << family;
    }
  }
}

TEST(Mtp, TensorsHaveTheirNamesOnTheHub) {
  const std::vector<std::string> after{"model.layers.2.enorm.weight",
                                       "model.layers.2.hnorm.weight",
                                       "model.layers.2.eh_proj.weight",
                                       "model.layers.2.shared_head.norm.weight",
                                       "model.layers.2.input_layernorm.weight",
                                       "model.layers.2.self_attn.o_proj.weight",
                                       "model.layers.2.mlp.experts.5.up_proj.weight",
                                       "model.layers.2.mlp.gate.e_score_correction_bias",
                                       "model.layers.3.eh_proj.weight"};
  for (const std::string family : kFamilies) {
    const DecoderConfig config = decoder_config(json_of(family, most(family), true), true);
    Decoder decoder(config);
    std::set<std::string> names;
    for (const DiskTensor& tensor : disk_tensors(config, decoder.parameters())) {
      EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
      EXPECT_FALSE(disk_shape(tensor, decoder.parameters()).empty());
    }
    const std::vector<std::string> next{
        "mtp.fc.weight",   "mtp.pre_fc_norm_embedding.weight",     "mtp.pre_fc_norm_hidden.weight",
        "mtp.norm.weight", "mtp.layers.0.self_attn.q_norm.weight", "mtp.layers.0.mlp.shared_expert_gate.weight"};
    for (const std::string& name : family == "qwen3_next" ? next : after)
      EXPECT_TRUE(names.contains(name)) << family << ": " << name;
    EXPECT_EQ(config_json(config).at("num_nextn_predict_layers"), most(family));
    // What config.json says is read again; a module of GLM's owns its set of keys.
    EXPECT_EQ(decoder_config(config_json(config), true).mtp.size(), config.mtp.size());
    if (config.mtp[0].indexer) {
      EXPECT_TRUE(config.mtp[0].indexer->owns());
    }
    EXPECT_FALSE(config_json(decoder_config(json_of(family, 0), true)).contains("num_nextn_predict_layers"));
  }
  EXPECT_THROW(decoder_config(json_of("qwen3_next", 2), true), ConfigError);
  EXPECT_THROW(decoder_config(json_of("glm4_moe", -1), true), ConfigError);
  ordered_json llama = {{"model_type", "llama"}, {"num_nextn_predict_layers", 1}};
  EXPECT_THROW(decoder_config(llama, true), ConfigError);
}

}  // namespace
}  // namespace cairn::models
