// labels: quick
// The decoder as a machine: what the families have in common. Numbers against transformers:
// tests/oracles/parity_test.py.
#include "models/decoder.h"

#include <gtest/gtest.h>

#include "models/families/family.h"

namespace cairn::models {
namespace {

constexpr int64_t kBatch = 2, kLength = 24, kVocabulary = 61;

nlohmann::ordered_json json_of(const std::string& model_type) {
  nlohmann::ordered_json json{{"model_type", model_type},     {"vocab_size", kVocabulary}, {"hidden_size", 32},
                              {"intermediate_size", 40},      {"num_hidden_layers", 3},    {"num_attention_heads", 4},
                              {"max_position_embeddings", 64}};
  if (model_type != "gpt_neox") json["num_key_value_heads"] = 2;
  if (model_type == "qwen3_next") {
    json.update({{"num_experts", 0},
                 {"layer_types", {"linear_attention", "full_attention", "linear_attention"}},
                 {"head_dim", 16},
                 {"linear_num_key_heads", 2},
                 {"linear_num_value_heads", 4},
                 {"linear_key_head_dim", 8},
                 {"linear_value_head_dim", 12}});
  }
  return json;
}

struct Model {
  explicit Model(const std::string& model_type, double dropout_rate = 0)
      : decoder(decoder_config(json_of(model_type), true)) {
    decoder.parameters().initialise(5);
    // Norms and biases away from one and zero.
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    for (const Parameter& p : decoder.parameters().all()) {
      if (p.role == Role::norm || p.role == Role::bias) p.value().add_(at::randn(p.value().sizes(), generator) * 0.1);
    }
    grad = at::zeros_like(decoder.parameters().flat());
    decoder.parameters().bind_gradients(grad);
    ids = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
    targets = at::randint(0, kVocabulary, {kBatch * kLength}, generator).to(at::kInt);
    pass.batch = kBatch, pass.length = kLength;
    pass.positions = at::arange(kLength, at::kInt).repeat({kBatch});
    pass.dropout = dropout_rate, pass.dropout_seed = 11, pass.step = 4;
  }
  double loss() { return decoder.loss(ids, targets, pass, 1.0 / (kBatch * kLength), 1e-4, true).nll; }

  Decoder decoder;
  at::Tensor grad, ids, targets;
  Pass pass;
};

const char* const kShapes[] = {"llama", "gpt_neox", "olmo2", "gemma3_text",
                               "qwen3_next"};  // each order of norms and residuals

TEST(Decoder, GradientsAddUp) {
  Model model("qwen3");
  model.loss();
  const at::Tensor once = model.grad.clone();
  model.loss();
  EXPECT_LT((model.grad - 2 * once).norm().item<double>(), 1e-6 * once.norm().item<double>());
  EXPECT_GT(once.norm().item<double>(), 0);
}

TEST(Decoder, ActivationCheckpointingChangesNoBitWithDropoutEither) {
  for (const char* shape : kShapes) {
    for (const bool reference : {false, true}) {
      Model plain(shape, 0.2), recomputed(shape, 0.2);
      plain.pass.reference = recomputed.pass.reference = reference;
      recomputed.decoder.set_activation_checkpointing(true);
      EXPECT_EQ(plain.loss(), recomputed.loss()) << shape;
      EXPECT_TRUE(at::equal(plain.grad, recomputed.grad)) << shape << (reference ? ", reference" : "");
    }
  }
}

TEST(Decoder, DropoutIsTheSameInKernelsAndTwinsAndFollowsStepAndRow) {
  for (const char* shape : kShapes) {
    Model fast(shape, 0.3), twin(shape, 0.3);
    twin.pass.reference = true;
    const double loss = fast.loss();
    EXPECT_NEAR(loss, twin.loss(), 1e-4 * loss) << shape;
    EXPECT_LT((fast.grad - twin.grad).norm().item<double>(), 1e-5 * twin.grad.norm().item<double>()) << shape;
    EXPECT_EQ(fast.loss(), loss);
    fast.pass.step = 5;
    EXPECT_NE(fast.loss(), loss);
    fast.pass.step = 4, fast.pass.first_row = 48;
    EXPECT_NE(fast.loss(), loss);
    fast.pass.first_row = 0, fast.pass.dropout = 0;
    EXPECT_NE(fast.loss(), loss);
  }
}

// A micro-batch of two rows and two of one row draw the same masks and give the same loss.
TEST(Decoder, DropoutDoesNotDependOnTheMicroBatch) {
  Model whole("llama", 0.2), parts("llama", 0.2);
  const double loss = whole.loss();
  double sum = 0;
  parts.pass.batch = 1;
  parts.pass.positions = at::arange(kLength, at::kInt);
  for (int64_t row = 0; row < kBatch; ++row) {
    parts.pass.first_row = row * kLength;
    sum += parts.decoder
               .loss(parts.ids.narrow(0, row * kLength, kLength).contiguous(),
                     parts.targets.narrow(0, row * kLength, kLength).contiguous(), parts.pass, 1.0 / (kBatch * kLength),
                     1e-4, true)
               .nll;
  }
  EXPECT_NEAR(sum, loss, 1e-5 * loss);
  EXPECT_LT((parts.grad - whole.grad).norm().item<double>(), 1e-5 * whole.grad.norm().item<double>());
}

// Rows of a batch know nothing of each other, to the bit where their number is a multiple of 8.
TEST(Decoder, ARowHasTheSameBitsAloneAndInABatch) {
  for (const char* shape : kShapes) {
    Model model(shape);
    at::NoGradGuard no_grad;
    const at::Tensor both = model.decoder.hidden(model.ids, model.pass);
    Pass one = model.pass;
    one.batch = 1, one.positions = at::arange(kLength, at::kInt);
    const at::Tensor second = model.decoder.hidden(model.ids.narrow(0, kLength, kLength).contiguous(), one);
    EXPECT_TRUE(at::equal(both.narrow(0, kLength, kLength), second)) << shape;
  }
}

TEST(Decoder, FrozenWeightsGetNoGradientAndTheOthersTheSame) {
  for (const bool reference : {false, true}) {
    Model all("llama"), some("llama");
    all.pass.reference = some.pass.reference = reference;
    for (const Parameter& p : some.decoder.parameters().all()) {
      if (p.name.find("layers.0") != std::string::npos || p.role == Role::embedding)
        at::Tensor(p.leaf).set_requires_grad(false);
    }
    some.decoder.parameters().bind_gradients(some.grad);
    EXPECT_EQ(all.loss(), some.loss());
    for (size_t i = 0; i < all.decoder.parameters().all().size(); ++i) {
      const Parameter &a = all.decoder.parameters().all()[i], &b = some.decoder.parameters().all()[i];
      const at::Tensor theirs = some.grad.narrow(0, b.offset, b.numel());
      if (b.leaf.requires_grad()) {
        EXPECT_TRUE(at::equal(all.grad.narrow(0, a.offset, a.numel()), theirs)) << a.name;
      } else {
        EXPECT_EQ(theirs.abs().max().item<float>(), 0) << b.name;
      }
    }
  }
}

// What data parallelism hangs on: a block's gradients are complete when after_backward names it.
struct Recorder : Seams {
  void before_forward(int64_t block) const override { events->push_back({"f", block}); }
  void before_backward(int64_t block) const override { events->push_back({"b", block}); }
  void after_backward(int64_t block) const override {
    events->push_back({"B", block});
    if (block < 0 || block > 2) return;
    for (const Parameter& p : model->decoder.parameters().all()) {
      if (p.name.find("layers." + std::to_string(block) + ".") == std::string::npos) continue;
      complete->emplace(p.name, model->grad.narrow(0, p.offset, p.numel()).clone());
    }
  }
  Model* model = nullptr;
  std::shared_ptr<std::vector<std::pair<std::string, int64_t>>> events =
      std::make_shared<std::vector<std::pair<std::string, int64_t>>>();
  std::shared_ptr<std::map<std::string, at::Tensor>> complete = std::make_shared<std::map<std::string, at::Tensor>>();
};

TEST(Decoder, SeamsSeeBlocksInOrderWithTheirGradientsComplete) {
  for (const char* shape : kShapes) {
    for (const bool checkpointing : {false, true}) {
      Model model(shape), plain(shape);
      Recorder recorder;
      recorder.model = &model;
      model.pass.seams = &recorder;
      model.decoder.set_activation_checkpointing(checkpointing);
      EXPECT_EQ(model.loss(), plain.loss());
      EXPECT_TRUE(at::equal(model.grad, plain.grad)) << shape;
      std::vector<std::pair<std::string, int64_t>> backward;
      for (const auto& event : *recorder.events) {
        if (event.first == "B" && event.second >= 0 && event.second <= 2) backward.push_back(event);
      }
      EXPECT_EQ(backward, (std::vector<std::pair<std::string, int64_t>>{{"B", 2}, {"B", 1}, {"B", 0}})) << shape;
      EXPECT_FALSE(recorder.complete->empty());
      for (const auto& [name, value] : *recorder.complete) {
        const Parameter& p = model.decoder.parameters().at(name);
        EXPECT_TRUE(at::equal(value, model.grad.narrow(0, p.offset, p.numel())))
            << shape << ": " << name << " changed after its block was done";
      }
    }
  }
}

TEST(Decoder, TheCacheRefusesMoreThanItHolds) {
  Model model("llama");
  at::NoGradGuard no_grad;
  SequenceCache cache = model.decoder.make_cache(10);
  Pass step;
  step.length = 8, step.positions = at::arange(8, at::kInt), step.cache = &cache;
  model.decoder.hidden(model.ids.narrow(0, 0, 8).contiguous(), step);
  EXPECT_EQ(cache.length, 8);
  step.positions = step.positions + 8;
  EXPECT_THROW(model.decoder.hidden(model.ids.narrow(0, 8, 8).contiguous(), step), std::invalid_argument);
}

TEST(Decoder, IdsAndPositionsOutsideAreRefused) {
  Model model("llama");
  model.ids[3] = kVocabulary;
  EXPECT_THROW(model.loss(), std::invalid_argument);
  Decoder gpt2(decoder_config({{"model_type", "gpt2"},
                               {"vocab_size", kVocabulary},
                               {"n_embd", 16},
                               {"n_layer", 1},
                               {"n_head", 2},
                               {"n_positions", 8}},
                              true));
  gpt2.parameters().initialise(1);
  Pass pass;
  pass.length = 16, pass.positions = at::arange(16, at::kInt);
  at::NoGradGuard no_grad;
  EXPECT_THROW(gpt2.hidden(at::zeros({16}, at::kInt), pass), std::invalid_argument);
}

TEST(Parameters, LieInOneBufferByRoleAndStartFromSeedAndNameAlone) {
  Model model("qwen2");
  const Parameters& parameters = model.decoder.parameters();
  int64_t total = 0, last_role = 0;
  std::vector<const Parameter*> by_offset;
  for (const Parameter& p : parameters.all()) by_offset.push_back(&p);
  std::sort(by_offset.begin(), by_offset.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
  for (const Parameter* p : by_offset) {
    EXPECT_EQ(p->offset, total) << p->name;
    EXPECT_EQ(p->value().const_data_ptr(), parameters.flat().const_data_ptr<float>() + total) << p->name;
    EXPECT_EQ(p->grad().const_data_ptr(), model.grad.const_data_ptr<float>() + total) << p->name;
    EXPECT_GE(static_cast<int64_t>(p->role), last_role) << p->name;
    last_role = static_cast<int64_t>(p->role);
    total += p->numel();
  }
  EXPECT_EQ(total, parameters.numel());
  // A deeper model starts with the same first blocks.
  auto deeper_json = json_of("llama");
  deeper_json["num_hidden_layers"] = 5;
  Decoder shallow(decoder_config(json_of("llama"), true)), deeper(decoder_config(deeper_json, true)),
      other(decoder_config(json_of("llama"), true));
  shallow.parameters().initialise(5), deeper.parameters().initialise(5), other.parameters().initialise(6);
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  EXPECT_TRUE(at::equal(shallow.parameters().at(name).value(), deeper.parameters().at(name).value()));
  EXPECT_FALSE(at::equal(shallow.parameters().at(name).value(), other.parameters().at(name).value()));
  EXPECT_THROW(shallow.parameters().at("model.layers.7.mlp.up_proj.weight"), std::out_of_range);
}

}  // namespace
}  // namespace cairn::models
