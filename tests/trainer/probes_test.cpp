// Probes: they change no bit of a run, write what they should when they should, and measure gradients, updates, noise
// and curvature as their formulas say. Activations: probes_inside_test.cpp; against transformers:
// tests/oracles/probes_test.py.
#include <fstream>

#include "tests/trainer/probe_fixture.h"
#include "trainer/evaluate.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

using checkpoints::TemporaryFolder;
using testing::ordered_json;
using testing::probe;
using testing::RunSettings;
using testing::tiny;
using testing::TinyRun;

ProbeOptions all_options(const std::filesystem::path& folder) {
  return {.folder = folder,
          .hessian_iterations = 3,
          .text = "A cairn marks a trail.",
          .tokenizer = data::Tokenizer::bytes()};
}

// Six experts, two of them for a token.
ordered_json experts(const ordered_json& more) {
  ordered_json json{{"vocab_size", 257},
                    {"num_experts", 6},
                    {"num_experts_per_tok", 2},
                    {"head_dim", 8},
                    {"moe_intermediate_size", 16}};
  for (const char* other : {"n_routed_experts", "num_local_experts"})
    if (more.contains(other)) json.erase("num_experts");
  json.update(more);
  if (json["moe_intermediate_size"].is_null()) json.erase("moe_intermediate_size");
  return json;
}

TEST(Probes, EveryProbeLeavesEveryBitOfTheRun) {
  const std::vector<std::pair<ordered_json, RunSettings>> runs = {
      {tiny("llama", {{"vocab_size", 257}}), {.ema = 0.9}},
      {tiny("gpt_neox", {{"vocab_size", 257}}), {.optimizer = "muon", .dropout = 0.1, .lanes = 1}},
      {tiny("gemma3_text", {{"vocab_size", 257}, {"sliding_window", 5}, {"head_dim", 8}}),
       {.dropout = 0.2, .lanes = 4}},
      {tiny("olmo2", {{"vocab_size", 257}}), {.products = at::kBFloat16}},
      {tiny("qwen3", {{"vocab_size", 257}, {"head_dim", 8}}), {.weights = at::kBFloat16, .products = at::kBFloat16}},
      {tiny("qwen3_moe", experts({{"router_aux_loss_coef", 0.01}})), {.dropout = 0.1}},
      {tiny("glm4_moe", experts({{"n_routed_experts", 6}, {"n_shared_experts", 1}, {"first_k_dense_replace", 1}})), {}},
      {tiny("gpt_oss", experts({{"num_local_experts", 6}, {"moe_intermediate_size", nullptr}, {"sliding_window", 5}})),
       {}},
      {tiny("qwen3_next", experts({{"layer_types", {"linear_attention", "full_attention"}},
                                   {"linear_num_key_heads", 2},
                                   {"linear_num_value_heads", 4},
                                   {"linear_key_head_dim", 8},
                                   {"linear_value_head_dim", 8},
                                   {"shared_expert_intermediate_size", 16}})),
       {.lanes = 1}},
      {tiny("llama_dsa", {{"vocab_size", 257}, {"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", 5}}),
       {.optimizer = "muon"}},
      {tiny("deepseek_v32", experts({{"head_dim", 4},
                                     {"q_lora_rank", 12},
                                     {"kv_lora_rank", 16},
                                     {"qk_nope_head_dim", 8},
                                     {"qk_rope_head_dim", 4},
                                     {"v_head_dim", 8},
                                     {"num_key_value_heads", 4},
                                     {"index_n_heads", 2},
                                     {"index_head_dim", 8},
                                     {"index_topk", 5},
                                     {"n_routed_experts", 6},
                                     {"n_shared_experts", 1},
                                     {"first_k_dense_replace", 1},
                                     {"n_group", 2},
                                     {"topk_group", 1}})),
       {.ema = 0.9}},
  };
  for (const auto& [model, settings] : runs) {
    const std::string what = model.at("model_type");
    TinyRun plain(model, settings), probed(model, settings);
    plain.state.model().set_activation_checkpointing(true);
    probed.state.model().set_activation_checkpointing(true);
    const TemporaryFolder folder;
    const auto probes = make_probes({"all"}, all_options(folder / "probes"));
    for (int64_t n = 1; n <= 4; ++n) {
      const StepResult a = plain.step(), b = probed.step(probes.get());
      EXPECT_EQ(a.loss, b.loss) << what;
      EXPECT_EQ(a.grad_norm, b.grad_norm) << what;
      EXPECT_TRUE(at::equal(plain.state.gradient(), probed.state.gradient())) << what;
      EXPECT_EQ(plain.state.digest().hex(), probed.state.digest().hex()) << what << ", step " << n;
    }
    probes->finish();
    for (const ProbeKind* kind : probe_kinds()) {
      const auto found = testing::measured(folder / "probes", kind->name);
      const bool has = std::string(kind->name).starts_with("index_") ? model.contains("index_topk")
                       : kind->name == std::string("expert_load")    ? model.contains("num_experts_per_tok")
                                                                     : true;
      EXPECT_EQ(!found.empty(), has) << what << ", " << kind->name;
      for (const auto& [at, values] : found) {
        for (const double value : values)
          EXPECT_TRUE(std::isfinite(value) || kind->name == std::string("noise_scale")) << what << ", " << kind->name;
      }
    }
  }
}

TEST(Probes, MeasureTheStepsThatAreAskedForAndJoinWhatIsThere) {
  const TemporaryFolder folder;
  TinyRun run(tiny("llama"));
  const auto steps_of = [&](const std::string& metric) {
    std::vector<int64_t> steps;
    for (const auto& m : read_series(folder / "probes", metric)) {
      if (m.name.empty()) steps.push_back(m.step);
    }
    return steps;
  };
  {
    auto probes = make_probes({"grad_norm", "grad_cosine", "grad_norm"}, {.folder = folder / "probes", .every = 3});
    for (int i = 0; i < 7; ++i) run.step(probes.get());
    EXPECT_TRUE(read_series(folder / "probes", "grad_norm").empty());
  }  // written when it ends
  EXPECT_EQ(steps_of("grad_norm"), (std::vector<int64_t>{3, 6}));
  EXPECT_EQ(steps_of("grad_cosine"), (std::vector<int64_t>{3, 6}));
  auto probes = make_probes({"grad_norm"}, {.folder = folder / "probes", .every = 4, .write_seconds = 0});
  run.step(probes.get());  // step 8, written at once
  EXPECT_EQ(steps_of("grad_norm"), (std::vector<int64_t>{3, 6, 8}));
  EXPECT_EQ(probes->written().at(0).metric, "grad_norm");
  EXPECT_GT(probes->written().at(0).values, 1);
  EXPECT_TRUE(std::filesystem::exists(folder / "probes/grad_norm.h5"));
}

TEST(Probes, MistakesAreNamed) {
  EXPECT_SAYS(checkpoints::message_of([] { make_probes({"grad_nrom"}, {}); }), "grad_nrom", "grad_norm", "hessian");
  EXPECT_SAYS(checkpoints::message_of([] { make_probes({"token_loss"}, {}); }), "token_loss", "--text");
  EXPECT_SAYS(checkpoints::message_of([] { make_probes({"grad_norm"}, {.every = 0}); }), "every", "0");
  TinyRun one(tiny("llama"), {.batch = 1, .micro_batch = 1, .lanes = 1});
  const auto probes = make_probes({"noise_scale"}, {});
  EXPECT_SAYS(checkpoints::message_of([&] { one.step(probes.get()); }), "noise_scale", "batch");
}

// ---------------------------------------------------------------- gradients and updates

TEST(GradNorm, OfEverythingOfLayersAndOfTensorsOnDisk) {
  TinyRun run(tiny("gpt_neox")), same(tiny("gpt_neox"));
  const double norm = same.step().grad_norm;
  const auto found = probe(run, "grad_norm");
  const auto value = [&](const std::string& name) { return found.at({1, name}).at(0); };
  EXPECT_DOUBLE_EQ(value(""), norm);
  double tensors = 0, qkv = 0, layer = 0;
  for (const auto& tensor : models::disk_tensors(run.state.model().config(), run.state.model().parameters())) {
    tensors += std::pow(value(tensor.name), 2);
    if (tensor.name.find("layers.1.") != std::string::npos) layer += std::pow(value(tensor.name), 2);
  }
  EXPECT_NEAR(std::sqrt(tensors), norm, 1e-12 * norm);
  EXPECT_NEAR(value("layer.1"), std::sqrt(layer), 1e-12);
  // The gradient itself, by one backward pass over the whole batch.
  TinyRun fresh(tiny("gpt_neox"));
  auto& model = fresh.state.model();
  const at::Tensor gradient = at::zeros_like(model.parameters().flat());
  model.parameters().bind_gradients(gradient);
  const StepData data = fresh.data(1);
  const ModelInput input = model_input(data.rows(0, fresh.settings.batch));
  model.loss(input.ids, input.targets, input.pass, 1.0 / data.targets, 0, true);
  for (const char* part : {"q", "k", "v"}) {
    const auto& p = model.parameters().at(fmt::format("model.layers.1.self_attn.{}_proj.weight", part));
    qkv += gradient.narrow(0, p.offset, p.numel()).square().sum().item<double>();
  }
  EXPECT_NEAR(value("gpt_neox.layers.1.attention.query_key_value.weight"), std::sqrt(qkv), 1e-5 * std::sqrt(qkv));
}

TEST(UpdateRatio, IsTheChangeOverWhatWasThere) {
  TinyRun run(tiny("qwen2")), same(tiny("qwen2"));
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const at::Tensor old = same.weight(name).clone(), flat = same.state.model().parameters().flat().clone();
  same.step();
  const auto found = probe(run, "update_ratio");
  const auto ratio = [](const at::Tensor& now, const at::Tensor& before) {
    return (now - before).norm().item<double>() / before.norm().item<double>();
  };
  EXPECT_NEAR(found.at({1, name}).at(0), ratio(same.weight(name), old), 1e-6);
  EXPECT_NEAR(found.at({1, ""}).at(0), ratio(same.state.model().parameters().flat(), flat), 1e-6);
  EXPECT_GT(found.at({1, ""}).at(0), 1e-3);
}

TEST(GradCosine, OfTheSameGradientIsOneAndOfOthersTheFormula) {
  // A learning rate of zero and one batch: successive gradients are equal.
  TinyRun still(tiny("llama"), {.lr = 0});
  const auto draw = still.draw;
  still.draw = [&](int64_t) { return draw(1); };
  for (const auto& [at, values] : probe(still, "grad_cosine", 3)) EXPECT_NEAR(values[0], 1, 1e-9) << at.second;

  struct Keep : StepObserver {
    void gradients(State& state, const StepResult&) override { all.push_back(state.gradient().to(at::kDouble)); }
    std::vector<at::Tensor> all;
  } keep;
  TinyRun run(tiny("llama")), same(tiny("llama"));
  for (int i = 0; i < 3; ++i) same.step(&keep);
  const auto found = probe(run, "grad_cosine", 3);
  EXPECT_FALSE(found.contains({1, ""}));
  for (int64_t n : {2, 3}) {
    const at::Tensor &a = keep.all[n - 2], &b = keep.all[n - 1];
    EXPECT_NEAR(found.at({n, ""}).at(0), (a.dot(b) / a.norm() / b.norm()).item<double>(), 1e-9);
  }
  EXPECT_LT(std::abs(found.at({2, ""}).at(0)), 0.9);
}

// ---------------------------------------------------------------- noise

// Two sequences A and B, a micro-batch each: the unbiased estimates are |G|² = gA·gB and tr Σ = |gA - gB|² / 2.
TEST(NoiseScale, OfTwoSequencesIsTheClosedForm) {
  for (const char* type : {"llama", "gpt_neox"}) {
    TinyRun run(tiny(type), {.batch = 2, .micro_batch = 1, .lanes = 1});
    auto copy = std::unique_ptr<models::Decoder>();
    auto& model = refresh(copy, run.state.model(), at::kFloat);
    const at::Tensor gradient = at::zeros_like(model.parameters().flat());
    model.parameters().bind_gradients(gradient);
    const StepData data = run.data(1);
    std::vector<at::Tensor> g;
    for (int64_t row : {0, 1}) {
      gradient.zero_();
      const ModelInput input = model_input(data.rows(row, 1));
      model.loss(input.ids, input.targets, input.pass, 1.0 / run.context, 0, true);
      g.push_back(gradient.to(at::kDouble));
    }
    const double squared = g[0].dot(g[1]).item<double>(), trace = (g[0] - g[1]).square().sum().item<double>() / 2;
    const auto found = probe(run, "noise_scale");
    EXPECT_NEAR(found.at({1, "gradient_squared"}).at(0), squared, 1e-4 * std::abs(trace));
    EXPECT_NEAR(found.at({1, "variance_trace"}).at(0), trace, 1e-4 * trace);
    if (squared > 0) {
      EXPECT_NEAR(found.at({1, ""}).at(0), trace / squared, 1e-3 * trace / squared);
    }
  }
}

// The auxiliary loss of experts is no part of what is measured: same weights, same tokens, same noise.
TEST(NoiseScale, LeavesTheLossesOfExpertsAside) {
  std::map<double, std::map<std::pair<int64_t, std::string>, std::vector<double>>> found;
  for (const double coefficient : {0.0, 5.0}) {
    TinyRun run(tiny("qwen3_moe", experts({{"vocab_size", 61}, {"router_aux_loss_coef", coefficient}})));
    found[coefficient] = probe(run, "noise_scale");
  }
  for (const char* name : {"gradient_squared", "variance_trace"})
    EXPECT_NEAR(found[5.0].at({1, name}).at(0), found[0.0].at({1, name}).at(0),
                1e-4 * std::abs(found[0.0].at({1, "variance_trace"}).at(0)))
        << name;
}

TEST(NoiseScale, OfEqualSequencesIsZero) {
  TinyRun run(tiny("llama"));
  const auto draw = run.draw;
  run.draw = [&](int64_t n) {
    data::Batch batch = draw(n);
    for (auto* ids : {&batch.inputs, &batch.targets}) {
      for (size_t i = run.context; i < ids->size(); ++i) (*ids)[i] = (*ids)[i % run.context];
    }
    return batch;
  };
  const auto found = probe(run, "noise_scale");
  TinyRun same(tiny("llama"));
  same.draw = [&](int64_t n) { return run.draw(n); };
  const double norm = same.step().grad_norm;
  EXPECT_NEAR(found.at({1, "gradient_squared"}).at(0), norm * norm, 1e-5 * norm * norm);
  EXPECT_NEAR(found.at({1, "variance_trace"}).at(0), 0, 1e-4 * norm * norm);
}

// The estimator is unbiased: over many steps that change nothing, the mean of its estimates comes to those of all
// sequences that there are. A finite population of six sequences, drawn with replacement.
TEST(NoiseScale, IsUnbiased) {
  const int64_t population = 6, steps = 400;
  TinyRun run(tiny("llama", {{"num_hidden_layers", 1}, {"hidden_size", 16}}),
              {.batch = 4, .micro_batch = 1, .lanes = 1, .lr = 0});
  const auto draw = run.draw;
  const auto sequence = [&](int64_t i) {  // one row
    run.settings.batch = 1;
    data::Batch row = draw(1000 + i);
    run.settings.batch = 4;
    return row;
  };
  std::vector<data::Batch> sequences;
  for (int64_t i = 0; i < population; ++i) sequences.push_back(sequence(i));
  run.draw = [&](int64_t n) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(7000 + n);
    data::Batch batch{.rows = 4, .context = run.context};
    for (int64_t row = 0; row < 4; ++row) {
      const auto& from = sequences[at::randint(0, population, {1}, generator).item<int64_t>()];
      batch.inputs.insert(batch.inputs.end(), from.inputs.begin(), from.inputs.end());
      batch.targets.insert(batch.targets.end(), from.targets.begin(), from.targets.end());
      batch.positions.insert(batch.positions.end(), from.positions.begin(), from.positions.end());
      batch.segments.insert(batch.segments.end(), from.segments.begin(), from.segments.end());
    }
    return batch;
  };
  std::unique_ptr<models::Decoder> copy;
  auto& model = refresh(copy, run.state.model(), at::kFloat);
  const at::Tensor gradient = at::zeros_like(model.parameters().flat());
  model.parameters().bind_gradients(gradient);
  std::vector<at::Tensor> g;
  at::Tensor mean = at::zeros({gradient.numel()}, at::kDouble);
  for (const auto& row : sequences) {
    gradient.zero_();
    const ModelInput input = model_input(row);
    model.loss(input.ids, input.targets, input.pass, 1.0 / run.context, 0, true);
    g.push_back(gradient.to(at::kDouble));
    mean += g.back() / static_cast<double>(population);
  }
  double trace = 0;
  for (const auto& one : g) trace += (one - mean).square().sum().item<double>() / population;
  const double squared = mean.square().sum().item<double>();
  double traces = 0, squares = 0;
  for (const auto& [at, values] : probe(run, "noise_scale", steps)) {
    if (at.second == "variance_trace") traces += values[0] / steps;
    if (at.second == "gradient_squared") squares += values[0] / steps;
  }
  EXPECT_NEAR(traces, trace, 0.1 * trace);
  EXPECT_NEAR(squares, squared, 0.1 * squared + 0.02 * trace);
  // The plain ratio of norms is not: |g_B|² alone is off by tr Σ / B.
  EXPECT_GT(std::abs(squared + trace / 4 - squares), 0.1 * trace);
}

// ---------------------------------------------------------------- curvature

// The dense Hessian by differentiating every element of the gradient, in float64, and its eigenvalues.
at::Tensor eigenvalues(TinyRun& run) {
  models::Decoder model(run.state.model().config(), at::kDouble);
  model.parameters().flat().copy_(run.state.model().parameters().flat());
  const StepData data = run.data(run.state.step + 1);
  ModelInput input = model_input(data.rows(0, run.settings.batch));
  input.pass.reference = true;
  input.pass.products = at::kDouble;
  std::vector<at::Tensor> leaves;
  for (const auto& p : model.parameters().all()) {
    if (p.first_row == 0) leaves.push_back(p.leaf);
  }
  at::AutoGradMode on(true);
  const at::Tensor hidden = model.hidden(input.ids, input.pass);
  const at::Tensor logits = at::mm(hidden, model.parameters().at("model.embed_tokens.weight").leaf.t());
  const at::Tensor logp = at::log_softmax(logits, 1);
  const at::Tensor loss = -logp.gather(1, input.targets.to(at::kLong).unsqueeze(1)).mean();
  const auto first = torch::autograd::grad({loss}, leaves, {}, true, true);
  std::vector<at::Tensor> flat;
  for (const auto& g : first) flat.push_back(g.reshape({-1}));
  const at::Tensor gradient = at::cat(flat);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < gradient.numel(); ++i) {
    const auto second = torch::autograd::grad({gradient[i]}, leaves, {}, true, false, true);
    std::vector<at::Tensor> row;
    for (size_t k = 0; k < leaves.size(); ++k)
      row.push_back(second[k].defined() ? second[k].reshape({-1}) : at::zeros({leaves[k].numel()}, at::kDouble));
    rows.push_back(at::cat(row));
  }
  at::NoGradGuard no_grad;
  const at::Tensor H = at::stack(rows);
  EXPECT_LT((H - H.t()).abs().max().item<double>(), 1e-9 * H.abs().max().item<double>());
  return at::linalg_eigvalsh(H);
}

TEST(Hessian, TopEigenvalueIsThatOfTheDenseMatrix) {
  for (const char* type : {"llama", "olmo2", "gemma3_text"}) {
    ordered_json model = tiny(type, {{"vocab_size", 11},
                                     {"hidden_size", 8},
                                     {"intermediate_size", 12},
                                     {"num_hidden_layers", 1},
                                     {"num_attention_heads", 2},
                                     {"num_key_value_heads", 1},
                                     {"tie_word_embeddings", true}});
    if (type == std::string("gemma3_text")) model["head_dim"] = 4, model["sliding_window"] = 3;
    TinyRun run(model, {.batch = 6, .micro_batch = 2, .context = 8, .lanes = 1, .lr = 3e-2});
    for (int i = 0; i < 5; ++i) run.step();
    const at::Tensor all = eigenvalues(run);
    const double low = all[0].item<double>(), high = all[-1].item<double>();
    const double largest = std::abs(low) > high ? low : high;
    const auto found = probe(run, "hessian");
    EXPECT_NEAR(found.at({6, ""}).at(0), largest, 0.02 * std::abs(largest)) << type;
    EXPECT_EQ(found.at({6, "converged"}).at(0), 1) << type;
    EXPECT_LT(found.at({6, "iterations"}).at(0), 100) << type;
  }
}

TEST(Hessian, ALimitOfIterationsIsToldAndTheStartIsFixed) {
  TinyRun run(tiny("llama"), {.lr = 0});
  const auto draw = run.draw;
  run.draw = [&](int64_t) { return draw(1); };
  const auto found = probe(run, "hessian", 2, {.hessian_iterations = 2});
  EXPECT_EQ(found.at({1, "iterations"}).at(0), 2);
  EXPECT_EQ(found.at({1, "converged"}).at(0), 0);
  EXPECT_EQ(found.at({1, ""}).at(0), found.at({2, ""}).at(0));
}

// ---------------------------------------------------------------- tokens

TEST(TokenLoss, OfEveryTokenInWindowsOfTheContext) {
  TinyRun run(tiny("llama", {{"vocab_size", 257}})), same(tiny("llama", {{"vocab_size", 257}}));
  const auto tokenizer = data::Tokenizer::bytes();
  const std::string text = "A cairn marks a trail: each stone is a step, and the next one stands in sight.";
  const auto found = probe(run, "token_loss", 2, {.text = text, .tokenizer = tokenizer});
  same.step(), same.step();
  const auto& [at, losses] = *std::find_if(found.begin(), found.end(), [](const auto& m) {
    return m.first.first == 2 && m.first.second.find(".ids") == std::string::npos;
  });
  const auto ids = tokenizer->encode(text, true);
  EXPECT_EQ(found.at({1, at.second + ".ids"}), std::vector<double>(ids.begin(), ids.end()));
  EXPECT_FALSE(found.contains({2, at.second + ".ids"}));
  ASSERT_EQ(losses.size(), ids.size() - 1);
  double sum = 0;
  for (const double loss : losses) sum += loss;
  const Evaluation whole = evaluate_text(same.state.model(), *tokenizer, text, run.context, run.context);
  EXPECT_NEAR(sum / losses.size(), whole.nll, 1e-6);
  const auto first = log_probabilities(same.state.model(), {ids.begin(), ids.begin() + run.context + 1});
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(losses[i], -static_cast<double>(first[i])) << i;
}

}  // namespace
}  // namespace cairn
