// labels: quick
// What a forward pass shows of its inside: the same bits as without anyone looking, the stream whose norm is the
// result, and queries and keys whose probabilities give the attention.
#include "models/layers/capture.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "models/families/family.h"
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/norm.h"
#include "models/kernels/ref/sparse_attention.h"

namespace cairn::models {
namespace {

constexpr int64_t kBatch = 2, kLength = 24, kLayers = 3;

struct Keep : Capture {
  void stream(int64_t block, const at::Tensor& x) override { streams.emplace(block, x.clone()); }
  bool wants_attention() const override { return true; }
  void attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                 const kernels::AttentionOptions& options) override {
    probabilities.emplace(block, selected.defined()
                                     ? kernels::ref::sparse_attention_probabilities(q, k, selected, options)
                                     : kernels::ref::attention_probabilities(q, k, options));
  }
  std::map<int64_t, at::Tensor> streams, probabilities;
};

struct Case {
  std::string type;
  nlohmann::ordered_json changes;
};
const nlohmann::ordered_json kLatent{{"num_key_value_heads", 4},  {"q_lora_rank", 12},     {"kv_lora_rank", 16},
                                     {"qk_nope_head_dim", 8},     {"qk_rope_head_dim", 4}, {"v_head_dim", 8},
                                     {"first_k_dense_replace", 3}};
constexpr int64_t kTopk = 5;
nlohmann::ordered_json chooses(nlohmann::ordered_json json) {
  json.update({{"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", kTopk}});
  return json;
}
// Each order of norms and residuals, each norm of q and k, with and without rotation.
const Case kCases[] = {{"llama", {}},
                       {"gpt_neox", {}},
                       {"gpt_neox", {{"use_parallel_residual", false}}},
                       {"olmo2", {}},
                       {"gemma3_text", {{"head_dim", 8}, {"sliding_window", 7}}},
                       {"qwen3", {{"head_dim", 8}}},
                       {"smollm3", {{"no_rope_layer_interval", 2}}},
                       {"gpt2", {}},
                       {"deepseek_v3", kLatent},
                       // An indexer that chooses 5 keys.
                       {"deepseek_v32", chooses(kLatent)},
                       {"llama_dsa", chooses({})}};

std::unique_ptr<Decoder> decoder(const Case& of) {
  nlohmann::ordered_json json{{"model_type", of.type},
                              {"vocab_size", 61},
                              {"hidden_size", 32},
                              {"intermediate_size", 40},
                              {"num_hidden_layers", kLayers},
                              {"num_attention_heads", 4},
                              {"max_position_embeddings", 64}};
  if (of.type == "gpt2")
    json = {{"model_type", "gpt2"}, {"vocab_size", 61}, {"n_embd", 32},
            {"n_layer", kLayers},   {"n_head", 4},      {"n_positions", 64}};
  else if (of.type != "gpt_neox")
    json["num_key_value_heads"] = 2;
  if (!of.changes.is_null()) json.update(of.changes);
  auto model = std::make_unique<Decoder>(decoder_config(json, true));
  model->parameters().initialise(5);
  auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
  for (const Parameter& p : model->parameters().all()) {
    if (p.role == Role::matrix) p.value().mul_(8);  // attention far from uniform
    if (p.role == Role::norm || p.role == Role::bias) p.value().add_(at::randn(p.value().sizes(), generator) * 0.1);
  }
  return model;
}

TEST(Capture, ShowsWhatIsComputedAndChangesNoBit) {
  at::NoGradGuard no_grad;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  const at::Tensor ids = at::randint(0, 61, {kBatch * kLength}, generator).to(at::kInt);
  for (const Case& one : kCases) {
    const auto model = decoder(one);
    Pass pass;
    pass.batch = kBatch, pass.length = kLength;
    pass.positions = at::arange(kLength, at::kInt).repeat({kBatch});
    Keep seen[2];
    for (const bool reference : {false, true}) {
      pass.reference = reference;
      pass.capture = nullptr;
      const at::Tensor plain = model->hidden(ids, pass);
      Keep& keep = seen[reference];
      pass.capture = &keep;
      const at::Tensor hidden = model->hidden(ids, pass);
      EXPECT_TRUE(at::equal(plain, hidden)) << one.type;
      ASSERT_EQ(keep.streams.size(), kLayers + 1) << one.type;
      ASSERT_EQ(keep.probabilities.size(), kLayers) << one.type;
      // The final norm of the last block's stream is the result.
      const auto& config = model->config().norm;
      const at::Tensor weight = model->parameters().at("model.norm.weight").value();
      const at::Tensor& last = keep.streams.at(kLayers - 1);
      const at::Tensor normed =
          config.kind == NormConfig::Kind::rms
              ? kernels::ref::rms_norm(last, weight, config.eps, config.offset)
              : kernels::ref::layer_norm(last, weight, model->parameters().at("model.norm.bias").value(), config.eps);
      EXPECT_LT((normed - hidden).abs().max().item<double>(), 1e-5) << one.type;
    }
    for (int64_t block = -1; block < kLayers; ++block) {
      const at::Tensor &a = seen[0].streams.at(block), &b = seen[1].streams.at(block);
      EXPECT_LT((a - b).abs().max().item<double>(), 1e-4 * b.abs().max().item<double>()) << one.type << block;
      if (block < 0) continue;
      const at::Tensor &p = seen[0].probabilities.at(block), &r = seen[1].probabilities.at(block);
      EXPECT_EQ(p.sizes().vec(), (std::vector<int64_t>{kBatch, 4, kLength, kLength}));
      EXPECT_LT((p - r).abs().max().item<double>(), 1e-4) << one.type << block;
      EXPECT_LT((p.sum(-1) - 1).abs().max().item<double>(), 1e-5);
      EXPECT_EQ(p.triu(1).abs().max().item<double>(), 0);
      const int64_t window = model->config().blocks[block].attention.sliding_window;
      if (window > 0) EXPECT_EQ(p.tril(-window).abs().max().item<double>(), 0) << one.type;
      if (model->config().blocks[block].indexer)
        EXPECT_EQ(p.gt(0).sum(-1).max().item<int64_t>(), kTopk) << one.type;
      else
        EXPECT_GT(p.gt(0).sum(-1).max().item<int64_t>(), kTopk) << one.type;
    }
  }
}

}  // namespace
}  // namespace cairn::models
