// labels: quick
// What parallelism will hook into: every linear layer, the embedding, attention and block calls its seam, forward and
// backward, and what a seam hands back is what is used.
#include "models/seams.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "models/families/family.h"

namespace cairn::models {
namespace {

constexpr int64_t kBatch = 2, kLength = 16, kLayers = 2, kVocabulary = 61;

// Turns every exchange around before and back after: heads, rows of the embedding. Nothing changes where each pair
// stands around the whole of what it is for, and everything where one is missing.
struct Mirror : Seams {
  bool exchanges_linear() const override { return true; }
  at::Tensor linear_input(const at::Tensor& x, LinearCut cut) const override {
    cuts.push_back(cut);
    return x * 2;
  }
  at::Tensor linear_output(const at::Tensor& y, LinearCut cut) const override {
    EXPECT_EQ(cut, cuts.at(outputs++));
    return y / 2;
  }
  at::Tensor embedding_ids(const at::Tensor& ids) const override { return ids.flip(0); }
  at::Tensor embedding_output(const at::Tensor& y) const override { return y.flip(0); }
  bool exchanges_attention() const override { return true; }
  void attention_input(at::Tensor& q, at::Tensor& k, at::Tensor& v) const override {
    EXPECT_EQ(q.dim(), 3);
    EXPECT_EQ(k.size(1), v.size(1));
    q = q.flip(1), k = k.flip(1), v = v.flip(1);
    ++attentions;
  }
  at::Tensor attention_output(const at::Tensor& out) const override {
    return out.view({out.size(0), kHeads, -1}).flip(1).reshape(out.sizes());
  }
  void before_forward(int64_t block) const override { blocks.push_back("before " + std::to_string(block)); }
  void after_forward(int64_t block) const override { blocks.push_back("after " + std::to_string(block)); }
  void before_backward(int64_t block) const override { back.push_back("before " + std::to_string(block)); }
  void after_backward(int64_t block) const override { back.push_back("after " + std::to_string(block)); }

  static constexpr int64_t kHeads = 4;
  bool exchanges_tokens() const override { return true; }
  void expert_input(at::Tensor& x, at::Tensor& experts, at::Tensor& weights) const override {
    x = x.flip(0), experts = experts.flip(0), weights = weights.flip(0);
    ++dispatches;
  }
  at::Tensor expert_output(const at::Tensor& out) const override { return out.flip(0); }

  mutable int dispatches = 0;
  mutable std::vector<LinearCut> cuts;
  mutable size_t outputs = 0;
  mutable int attentions = 0;
  mutable std::vector<std::string> blocks, back;
};

std::unique_ptr<Decoder> decoder(const std::string& type) {
  nlohmann::ordered_json json{
      {"model_type", type},           {"vocab_size", kVocabulary},    {"hidden_size", 32},
      {"intermediate_size", 40},      {"num_hidden_layers", kLayers}, {"num_attention_heads", 4},
      {"max_position_embeddings", 64}};
  if (type != "gpt_neox") json["num_key_value_heads"] = type == "deepseek_v3" ? 4 : 2;
  if (type == "qwen3_moe") json.update({{"num_experts", 6}, {"num_experts_per_tok", 2}, {"moe_intermediate_size", 16}});
  if (type == "deepseek_v3") {
    json.update({{"q_lora_rank", 12},
                 {"kv_lora_rank", 16},
                 {"qk_nope_head_dim", 8},
                 {"qk_rope_head_dim", 4},
                 {"v_head_dim", 8},
                 {"n_routed_experts", 6},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 16},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"first_k_dense_replace", 0}});
  }
  auto model = std::make_unique<Decoder>(decoder_config(json, true));
  model->parameters().initialise(5);
  return model;
}

struct Result {
  double nll;
  at::Tensor gradient;
};

Result run(Decoder& model, const Seams& seams, bool reference) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
  const at::Tensor ids = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
  const at::Tensor targets = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
  Pass pass{.batch = kBatch, .length = kLength, .positions = at::arange(kLength, at::kInt).repeat({kBatch})};
  pass.reference = reference;
  pass.seams = &seams;
  const at::Tensor gradient = at::zeros_like(model.parameters().flat());
  model.parameters().bind_gradients(gradient);
  return {model.loss(ids, targets, pass, 1.0 / (kBatch * kLength), 0, true).nll, gradient};
}

// Without biases: half of y is half of the bias too.
TEST(Seams, StandAroundWhatTheyAreFor) {
  for (const std::string type : {"llama", "qwen3", "olmo2", "qwen3_moe", "deepseek_v3"}) {
    const auto model = decoder(type);
    const bool mixture = type == "qwen3_moe" || type == "deepseek_v3";
    for (const bool reference : {false, true}) {
      const Result plain = run(*model, Seams::none(), reference);
      const Mirror mirror;
      const Result seen = run(*model, mirror, reference);
      EXPECT_NEAR(seen.nll, plain.nll, 1e-4 * plain.nll) << type;
      EXPECT_LT((seen.gradient - plain.gradient).norm().item<double>(), 1e-4 * plain.gradient.norm().item<double>())
          << type;
      EXPECT_EQ(mirror.attentions, kLayers) << type;
      EXPECT_EQ(mirror.dispatches, mixture ? kLayers : 0) << type;
      EXPECT_EQ(mirror.outputs, mirror.cuts.size()) << type;
      if (mixture) continue;
      std::vector<LinearCut> cuts;
      for (int64_t i = 0; i < kLayers; ++i) {
        // q, k, v; o; gate and up; down
        for (const LinearCut cut : {LinearCut::column, LinearCut::row, LinearCut::column, LinearCut::row})
          cuts.push_back(cut);
      }
      EXPECT_EQ(mirror.cuts, cuts) << type;
      EXPECT_EQ(mirror.outputs, cuts.size()) << type;
    }
  }
}

TEST(Seams, EveryBlockIsEnteredAndLeftOnceEachWay) {
  for (const char* type : {"llama", "gpt_neox"}) {
    const auto model = decoder(type);
    const Mirror mirror;
    run(*model, mirror, false);
    const std::vector<std::string> forward{"before -1", "after -1", "before 0", "after 0",
                                           "before 1",  "after 1",  "before 2", "after 2"};
    const std::vector<std::string> backward{"before 2", "after 2", "before 1",  "after 1",
                                            "before 0", "after 0", "before -1", "after -1"};
    EXPECT_EQ(mirror.blocks, forward) << type;
    EXPECT_EQ(mirror.back, backward) << type;
  }
}

}  // namespace
}  // namespace cairn::models
