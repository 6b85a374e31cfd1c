// Probes that look inside a forward pass, on models whose inside is known in closed form.
#include "tests/trainer/probe_fixture.h"

namespace cairn {
namespace {

using testing::ordered_json;
using testing::probe;
using testing::tiny;
using testing::TinyRun;

// Blocks that add nothing: the stream is the embedding of the tokens.
void silence(TinyRun& run) {
  for (const auto& p : run.state.model().parameters().all()) {
    if (p.name.find("o_proj") != std::string::npos || p.name.find("down_proj") != std::string::npos) p.value().zero_();
  }
}

// Queries of zero: every head looks at all it sees alike.
void look_everywhere(TinyRun& run) {
  for (const auto& p : run.state.model().parameters().all()) {
    if (p.name.find("q_proj") != std::string::npos) p.value().zero_();
  }
}

TEST(Activations, AreThoseOfTheStream) {
  for (const char* type : {"llama", "gpt_neox"}) {
    TinyRun rms_run(tiny(type)), kurtosis_run(tiny(type));
    silence(rms_run), silence(kurtosis_run);
    // The whole batch: 8 rows of 16 tokens.
    const data::Batch batch = rms_run.draw(1);
    const at::Tensor table = rms_run.weight("model.embed_tokens.weight").to(at::kDouble).clone();
    const at::Tensor x = table.index_select(0, at::tensor(batch.inputs, at::kInt));
    const at::Tensor squares = x.square().mean(0);  // s²
    const auto rms = probe(rms_run, "activation_rms"), kurtosis = probe(kurtosis_run, "activation_kurtosis");
    for (const char* name : {"embed", "layer.0", "layer.1"}) {
      EXPECT_NEAR(rms.at({1, name}).at(0), std::sqrt(x.square().mean().item<double>()), 1e-7) << type << name;
      EXPECT_NEAR(kurtosis.at({1, name}).at(0), (squares.square().mean() / squares.mean().square()).item<double>(),
                  1e-6);
    }
  }
}

TEST(Activations, KurtosisIsOneForEqualChannelsAndTheWidthForOne) {
  TinyRun equal(tiny("llama")), single(tiny("llama"));
  silence(equal), silence(single);
  equal.weight("model.embed_tokens.weight").fill_(0.3);
  single.weight("model.embed_tokens.weight").zero_();
  single.weight("model.embed_tokens.weight").select(1, 7).fill_(2.0);
  EXPECT_NEAR(probe(equal, "activation_kurtosis").at({1, "layer.1"}).at(0), 1, 1e-9);
  EXPECT_NEAR(probe(single, "activation_kurtosis").at({1, "layer.1"}).at(0), 32, 1e-6);
}

TEST(Activations, OfTheFirstSequencesAlone) {
  TinyRun run(tiny("llama"));
  silence(run);
  const data::Batch batch = run.draw(1);
  const std::vector<int32_t> first(batch.inputs.begin(), batch.inputs.begin() + 3 * run.context);
  const at::Tensor x =
      run.weight("model.embed_tokens.weight").to(at::kDouble).index_select(0, at::tensor(first, at::kInt));
  EXPECT_NEAR(probe(run, "activation_rms", 1, {.sequences = 3}).at({1, "layer.0"}).at(0),
              std::sqrt(x.square().mean().item<double>()), 1e-7);
}

// ---------------------------------------------------------------- attention

// The mean of ln(number of keys seen).
double uniform_entropy(const std::vector<int64_t>& seen) {
  double sum = 0;
  for (const int64_t n : seen) sum += std::log(static_cast<double>(n));
  return sum / seen.size();
}

TEST(AttentionEntropy, OfUniformAttentionIsTheLogOfWhatIsSeen) {
  std::vector<int64_t> causal, window;
  for (int64_t t = 0; t < 16; ++t) causal.push_back(t + 1), window.push_back(std::min<int64_t>(t + 1, 5));
  for (const char* type : {"llama", "mistral", "gpt2"}) {
    ordered_json model = tiny(type);
    if (type == std::string("mistral")) model["sliding_window"] = 5;
    TinyRun run(model);
    look_everywhere(run);
    const double expected = uniform_entropy(type == std::string("mistral") ? window : causal);
    const auto found = probe(run, "attention_entropy");
    for (const char* layer : {"layer.0", "layer.1"}) {
      ASSERT_EQ(found.at({1, layer}).size(), 4u);
      for (const double entropy : found.at({1, layer})) EXPECT_NEAR(entropy, expected, 1e-6) << type;
    }
  }
  // Of the keys that an indexer chooses, 3 at most.
  {
    std::vector<int64_t> chosen;
    for (int64_t t = 0; t < 16; ++t) chosen.push_back(std::min<int64_t>(t + 1, 3));
    TinyRun run(tiny("llama_dsa", {{"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", 3}}));
    look_everywhere(run);
    const auto found = probe(run, "attention_entropy");
    for (const double entropy : found.at({1, "layer.1"})) EXPECT_NEAR(entropy, uniform_entropy(chosen), 1e-6);
  }
  // Documents of 6 and 10 tokens.
  TinyRun run(tiny("llama"));
  look_everywhere(run);
  const auto draw = run.draw;
  run.draw = [&](int64_t n) {
    data::Batch batch = draw(n);
    for (size_t i = 0; i < batch.inputs.size(); ++i) {
      const int64_t t = i % run.context;
      batch.segments[i] = t >= 6, batch.positions[i] = static_cast<int32_t>(t >= 6 ? t - 6 : t);
    }
    return batch;
  };
  std::vector<int64_t> documents;
  for (int64_t t = 0; t < 16; ++t) documents.push_back(t < 6 ? t + 1 : t - 5);
  EXPECT_NEAR(probe(run, "attention_entropy").at({1, "layer.1"}).at(2), uniform_entropy(documents), 1e-6);
}

ordered_json indexed(int64_t topk) {
  return tiny("llama_dsa", {{"index_n_heads", 2}, {"index_head_dim", 8}, {"index_topk", topk}});
}

TEST(IndexRecall, OfUniformAttentionIsTheShareOfTheChosenKeys) {
  TinyRun run(indexed(3));
  look_everywhere(run);
  double mean = 0;
  for (int64_t t = 3; t < 16; ++t) mean += 3.0 / static_cast<double>(t + 1) / 13;
  const auto found = probe(run, "index_recall");
  for (const char* layer : {"layer.0", "layer.1"}) {
    ASSERT_EQ(found.at({1, layer}).size(), 4u);
    for (const double mass : found.at({1, layer})) EXPECT_NEAR(mass, mean, 1e-6);
    for (const double recall : found.at({1, std::string(layer) + ".recall"})) EXPECT_NEAR(recall, 1, 1e-6);
  }
  TinyRun all(indexed(16));  // as many as there are: no query had a choice
  EXPECT_TRUE(probe(all, "index_recall").empty());
  TinyRun some(indexed(5));
  const auto chosen = probe(some, "index_recall");
  for (const double recall : chosen.at({1, "layer.0.recall"})) {
    EXPECT_GT(recall, 0);
    EXPECT_LT(recall, 1);
  }
}

TEST(IndexOverlap, IsOneWhereAStepChangesNothing) {
  TinyRun still(indexed(3), {.lr = 0});
  EXPECT_EQ(probe(still, "index_overlap").at({1, "layer.1"}), (std::vector<double>{1.0}));
  // A step that long makes another model: of 3 keys out of 4 to 16, some stay by chance.
  TinyRun moved(indexed(3), {.lr = 1});
  const double kept = probe(moved, "index_overlap").at({1, "layer.1"}).at(0);
  EXPECT_GT(kept, 0.05);
  EXPECT_LT(kept, 0.95);
}

// A GPT-2 whose positions are unit vectors and whose one head maps a query's position to the key's `back` rows before:
// prefix matching is the attention P - 1 rows back, and nothing else.
TEST(Induction, IsTheAttentionToTheTokenAfterTheFirstOccurrence) {
  constexpr int64_t kContext = 20, kPeriod = 10, kWidth = 32;
  for (const int64_t back : {kPeriod - 2, kPeriod - 1, kPeriod}) {
    TinyRun run(tiny("gpt2", {{"n_head", 1}, {"n_layer", 1}, {"n_positions", kContext}}), {.context = kContext});
    const std::string attention = "model.layers.0.self_attn.";
    run.weight("model.embed_tokens.weight").zero_();
    run.weight("model.embed_positions.weight").zero_();
    for (int64_t t = 0; t < kContext; ++t) run.weight("model.embed_positions.weight")[t][t] = 1;
    for (const char* part : {"q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"})
      run.weight(attention + part).zero_();
    for (int64_t i = 0; i < kWidth; ++i) {
      run.weight(attention + "k_proj.weight")[i][i] = 1;
      if (i >= back) run.weight(attention + "q_proj.weight")[i - back][i] = 20;
    }
    for (const auto& p : run.state.model().parameters().all()) {
      if (p.role == models::Role::norm) p.value().fill_(1);
      if (p.role == models::Role::bias) p.value().zero_();
    }
    run.settings.lr = 0;
    const double score = probe(run, "induction").at({1, "layer.0"}).at(0);
    EXPECT_NEAR(score, back == kPeriod - 1 ? 1 : 0, 1e-3) << back;
  }
}

TEST(Induction, OfUniformAttentionIsTheShareOfOneKey) {
  for (const char* type : {"llama", "mistral"}) {
    ordered_json model = tiny(type);
    if (type == std::string("mistral")) model["sliding_window"] = 6;
    TinyRun run(model, {.lr = 0});
    look_everywhere(run);
    double expected = 0;  // P = 8: rows 8 to 15; a window of 6 does not reach 7 rows back
    for (int64_t t = 8; t < 16 && type == std::string("llama"); ++t) expected += 1.0 / (t + 1) / 8;
    const auto found = probe(run, "induction");
    ASSERT_EQ(found.at({1, "layer.1"}).size(), 4u);
    for (const double score : found.at({1, "layer.1"})) EXPECT_NEAR(score, expected, 1e-7) << type;
  }
}

TEST(Induction, NeedsAContextThatHoldsARepetition) {
  TinyRun run(tiny("llama"), {.context = 3});
  EXPECT_SAYS(checkpoints::message_of([&] { probe(run, "induction"); }), "induction", "context of 3", "4");
}

}  // namespace
}  // namespace cairn
