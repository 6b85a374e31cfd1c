// Modules that predict further tokens in a run: what a step does with their loss, and how their tensors come from disk
// and go there.
#include "models/mtp.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoints/safetensors.h"
#include "tests/trainer/probe_fixture.h"
#include "trainer/flops.h"
#include "trainer/model_io.h"
#include "trainer/setup.h"

namespace cairn {
namespace {

using checkpoints::TemporaryFolder;
using nlohmann::ordered_json;

ordered_json glm(int64_t modules) {
  ordered_json json = testing::tiny("glm4_moe", {{"head_dim", 8},
                                                 {"n_routed_experts", 6},
                                                 {"num_experts_per_tok", 2},
                                                 {"moe_intermediate_size", 12},
                                                 {"first_k_dense_replace", 1},
                                                 {"tie_word_embeddings", false}});
  if (modules) json["num_nextn_predict_layers"] = modules;
  return json;
}

// ---- a step

TEST(MtpStep, WeighsTheMeanOfTheModulesMeans) {
  testing::TinyRun run(glm(2));
  run.settings.mtp_loss_scaling_factor = 0.3;
  run.settings.bias_update_speed = 0.01;
  // The same by one call over the whole batch.
  models::Decoder whole(run.state.model().config());
  whole.parameters().flat().copy_(run.state.model().parameters().flat());
  for (const auto& buffer : whole.parameters().buffers())
    buffer.tensor.copy_(run.state.model().parameters().buffer(buffer.name).tensor);
  at::Tensor grad = at::zeros_like(whole.parameters().flat());
  whole.parameters().bind_gradients(grad);
  const StepData data = run.data(1);
  const ModelInput input = model_input(data.rows(0, run.settings.batch));
  const double rows = run.settings.batch, T = run.context;
  const std::vector<double> counts{rows * (T - 1), rows * (T - 2)};
  const models::Loss loss =
      whole.loss(input.ids, input.targets, input.pass, 1 / (rows * T), 0, true, {0.15 / counts[0], 0.15 / counts[1]});

  struct Look : StepObserver {
    void gradients(State& state, const StepResult&) override { seen = state.gradient().clone(); }
    at::Tensor seen;
  } look;
  const StepResult result = run.step(&look);
  EXPECT_LT((look.seen - grad).norm().item<double>(), 1e-5 * grad.norm().item<double>());
  EXPECT_NEAR(result.loss, loss.nll / (rows * T), 1e-5);
  ASSERT_TRUE(result.mtp_loss);
  EXPECT_NEAR(*result.mtp_loss, (loss.mtp[0].nll / counts[0] + loss.mtp[1].nll / counts[1]) / 2, 1e-5);
  for (int64_t m = 0; m < 2; ++m) {  // blocks 2 and 3
    const auto& nll = result.measured.sums.at({"mtp_loss", 2 + m});
    EXPECT_EQ(nll.weight, counts[m]);
    EXPECT_NEAR(nll.sum, loss.mtp[m].nll, 1e-4 * nll.sum);
    EXPECT_EQ(result.measured.sums.at({"mtp_accuracy", 2 + m}).sum, static_cast<double>(loss.mtp[m].correct));
    // Their experts are counted and balanced like the others.
    EXPECT_EQ(result.measured.experts.at(2 + m).sum().item<int64_t>(), rows * T * 2);
    const auto& bias =
        run.state.model().parameters().buffer(fmt::format("mtp.layers.{}.mlp.gate.e_score_correction_bias", m)).tensor;
    EXPECT_GT(bias.abs().sum().item<double>(), 0);
  }
  EXPECT_GT(step_flops(run.state.model(), 128, 16), step_flops(testing::TinyRun(glm(0)).state.model(), 128, 16));
}

TEST(MtpStep, LearnsAndIsTheSameAgain) {
  std::vector<std::string> digests;
  for (const bool checkpointing : {false, true}) {
    testing::TinyRun run(glm(1));
    run.draw = [draw = run.draw](int64_t) { return draw(1); };  // one batch again and again
    run.state.model().set_activation_checkpointing(checkpointing);
    double first = 0, last = 0;
    for (int i = 0; i < 25; ++i) {
      last = *run.step().mtp_loss;
      if (i == 0) first = last;
    }
    EXPECT_LT(last, first - 0.3);
    digests.push_back(run.state.digest().hex());
  }
  EXPECT_EQ(digests[0], digests[1]);
}

TEST(MtpStep, AModelWithoutModulesIsLeftAlone) {
  testing::TinyRun run(glm(0));
  const StepResult result = run.step();
  EXPECT_FALSE(result.mtp_loss);
  for (const auto& [key, sum] : result.measured.sums) EXPECT_FALSE(key.first.starts_with("mtp_"));
}

// router_aux_loss_coef pools the modules' routers with the others.
TEST(MtpStep, PoolsTheRoutersOfModules) {
  const ordered_json next = testing::tiny("qwen3_next", {{"head_dim", 16},
                                                         {"num_nextn_predict_layers", 1},
                                                         {"num_experts", 6},
                                                         {"num_experts_per_tok", 2},
                                                         {"moe_intermediate_size", 12},
                                                         {"shared_expert_intermediate_size", 12},
                                                         {"router_aux_loss_coef", 0.1},
                                                         {"layer_types", {"linear_attention", "full_attention"}},
                                                         {"linear_num_key_heads", 2},
                                                         {"linear_num_value_heads", 2},
                                                         {"linear_key_head_dim", 8},
                                                         {"linear_value_head_dim", 8}});
  testing::TinyRun run(next);
  const StepResult result = run.step();
  EXPECT_GT(result.measured.sums.at({"router_loss", 2}).sum, 0);
}

// ---- settings

config::RunConfig settings(const std::string& model, const std::string& more) {
  return config::parse("model: {" + model +
                           ", hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, "
                           "num_key_value_heads: 2, vocab_size: 256, max_position_embeddings: 64}\n"
                           "data: {train: [{text: /data/a.txt}], tokenizer: {bytes: true}, context: 32}\n" +
                           more,
                       "/runs/a/run.yaml");
}

std::string refusal(const config::RunConfig& config, const ordered_json& model) {
  try {
    check_modules(config, models::decoder_config(model, true));
  } catch (const config::ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(MtpSettings, AFactorNeedsModules) {
  const auto asked = settings("model_type: llama", "train: {steps: 9, batch: 8, mtp_loss_scaling_factor: 0.3}");
  EXPECT_NE(refusal(asked, testing::tiny("llama")).find("train.mtp_loss_scaling_factor: found 0.3"), std::string::npos);
  EXPECT_EQ(refusal(asked, glm(1)), "");
  const auto plain = settings("model_type: llama", "train: {steps: 9, batch: 8}");
  EXPECT_EQ(refusal(plain, testing::tiny("llama")), "");
  EXPECT_NE(refusal(plain, glm(32)).find("data.context: found 32"), std::string::npos);
  EXPECT_EQ(step_settings(plain, plain.stages[0], 1, 9).mtp_loss_scaling_factor, 0.1);
  EXPECT_EQ(step_settings(asked, asked.stages[0], 1, 9).mtp_loss_scaling_factor, 0.3);
  EXPECT_THROW(settings("model_type: llama", "train: {steps: 9, mtp_loss_scaling_factor: 0}"), config::ConfigError);
  // A stage may weigh it otherwise (DeepSeek-V3: 0.3, then 0.1).
  const auto staged = settings("model_type: llama",
                               "train: {batch: 8, mtp_loss_scaling_factor: 0.3}\n"
                               "stages: [{steps: 4}, {steps: 5, train: {mtp_loss_scaling_factor: 0.1}}]");
  EXPECT_EQ(step_settings(staged, staged.stages[0], 1, 9).mtp_loss_scaling_factor, 0.3);
  EXPECT_EQ(step_settings(staged, staged.stages[1], 5, 9).mtp_loss_scaling_factor, 0.1);
}

// ---- on disk

struct Written {
  explicit Written(const ordered_json& json) : model(models::decoder_config(json, true)) {
    model.parameters().initialise(3);
    save_model(model, folder.path.string());
  }
  // Writes the weights again with what `change` makes of them, and settings into config.json.
  void rewrite(const std::function<void(std::vector<checkpoints::TensorView>&)>& change,
               const ordered_json& changes = ordered_json::object()) {
    DiskModel disk = disk_model(model);
    change(disk.views);
    checkpoints::write_model(folder.path, disk.views, {{"format", "pt"}});
    ordered_json config = read_model_config(folder.path.string());
    config.update(changes);
    checkpoints::spill(folder / "config.json", config.dump());
  }
  void drop(const std::string& prefix, std::vector<checkpoints::TensorView>& views) const {
    std::erase_if(views, [&](const auto& view) { return view.name.starts_with(prefix); });
  }
  TemporaryFolder folder;
  models::Decoder model;
};

template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(MtpOnDisk, ComesBackAsItWas) {
  Written written(glm(2));
  const auto weights = checkpoints::ModelWeights::open(written.folder.path);
  EXPECT_TRUE(weights.contains("model.layers.3.eh_proj.weight"));
  EXPECT_TRUE(weights.contains("model.layers.2.mlp.gate.e_score_correction_bias"));
  EXPECT_FALSE(weights.contains("model.layers.2.embed_tokens.weight"));
  const auto loaded = load_model(written.folder.path.string());
  EXPECT_EQ(loaded->mtp_modules(), 2);
  EXPECT_TRUE(at::equal(loaded->parameters().flat(), written.model.parameters().flat()));
}

TEST(MtpOnDisk, AFolderWithoutTheirTensorsHasNone) {
  Written written(glm(1));
  written.rewrite([&](auto& views) { written.drop("model.layers.2.", views); });
  const auto loaded = load_model(written.folder.path.string());
  EXPECT_EQ(loaded->mtp_modules(), 0);
  EXPECT_EQ(models::config_json(loaded->config()).at("num_nextn_predict_layers"), 0);
  EXPECT_TRUE(at::equal(loaded->parameters().at("lm_head.weight").value(),
                        written.model.parameters().at("lm_head.weight").value()));
  // Half a module is none that could be used.
  written.rewrite([&](auto& views) { written.drop("model.layers.2.enorm", views); });
  EXPECT_NE(error_of([&] { load_model(written.folder.path.string()); }).find("model.layers.2.enorm.weight"),
            std::string::npos);
}

TEST(MtpOnDisk, MayBeLeftOut) {
  Written written(glm(1));
  written.rewrite([](auto&) {}, {{"num_nextn_predict_layers", 0}});
  EXPECT_EQ(load_model(written.folder.path.string())->mtp_modules(), 0);
}

TEST(MtpOnDisk, CopiesOfWhatIsSharedHaveToBeEqual) {
  Written written(glm(1));
  const at::Tensor embedding = written.model.parameters().at("model.embed_tokens.weight").value(),
                   head = written.model.parameters().at("lm_head.weight").value().clone();
  const auto with_copies = [&](std::vector<checkpoints::TensorView>& views) {
    views.push_back(view_of("model.layers.2.embed_tokens.weight", embedding));
    views.push_back(view_of("model.layers.2.shared_head.head.weight", head));
  };
  written.rewrite(with_copies);
  EXPECT_EQ(load_model(written.folder.path.string())->mtp_modules(), 1);
  head[0][0] += 1;
  written.rewrite(with_copies);
  const std::string error = error_of([&] { load_model(written.folder.path.string()); });
  EXPECT_NE(error.find("model.layers.2.shared_head.head.weight differs from lm_head.weight"), std::string::npos)
      << error;
  written.rewrite(with_copies, {{"num_nextn_predict_layers", 0}});
  EXPECT_EQ(load_model(written.folder.path.string())->mtp_modules(), 0);
}

TEST(MtpOnDisk, NewModulesBesideOldWeights) {
  Written written(glm(1));
  models::Decoder more(models::decoder_config(glm(2), true));
  more.parameters().initialise(8);
  const at::Tensor fresh = more.parameters().at("mtp.layers.1.eh_proj.weight").value().clone();
  const auto weights = checkpoints::ModelWeights::open(written.folder.path);
  EXPECT_NE(error_of([&] { load_weights(more, weights, "there"); }).find("are missing"), std::string::npos);
  load_weights(more, weights, "there", false, true);
  EXPECT_TRUE(at::equal(more.parameters().at("mtp.layers.1.eh_proj.weight").value(), fresh));
  for (const char* name : {"mtp.layers.0.eh_proj.weight", "model.layers.1.self_attn.q_proj.weight"})
    EXPECT_TRUE(at::equal(more.parameters().at(name).value(), written.model.parameters().at(name).value())) << name;
}

}  // namespace
}  // namespace cairn
