#include "trainer/bench/delta.h"

#include "models/families/family.h"
#include "models/layers/gated_delta_net.h"
#include "trainer/bench/sizes.h"
#include "trainer/environment.h"

namespace cairn::bench {
namespace {

// A quarter of Qwen3-Next in width and in heads; tests/oracles/bench_delta.py builds the same in transformers.
constexpr int64_t kHidden = 512, kKeyHeads = 4, kValueHeads = 8, kHeadDim = 128, kLayers = 4, kFeedForward = 1408,
                  kVocabulary = 4096;

models::Pass pass_of(int64_t tokens) {
  models::Pass pass;
  pass.length = tokens;
  pass.positions = at::arange(tokens, at::kInt);
  return pass;
}

// One layer and its gradients.
class Layer {
 public:
  Layer()
      : layer_(parameters_, "linear_attn", kHidden,
               {.num_key_heads = kKeyHeads,
                .num_value_heads = kValueHeads,
                .key_head_dim = kHeadDim,
                .value_head_dim = kHeadDim},
               0) {
    parameters_.flatten(at::kFloat, at::kCPU);
    parameters_.initialise(0);
    gradient_ = at::zeros_like(parameters_.flat());
    parameters_.bind_gradients(gradient_);
  }
  void run(int64_t tokens) {
    const at::Tensor x = at::randn({tokens, kHidden}).requires_grad_(true);
    const at::Tensor y = layer_.forward(x, pass_of(tokens));
    torch::autograd::backward({y}, {y.detach()});
  }

 private:
  models::Parameters parameters_;
  models::GatedDeltaNet layer_;
  at::Tensor gradient_;
};

// Linear layers alone: what a full one among them costs is attention's.
class Model {
 public:
  Model()
      : decoder_(models::decoder_config({{"model_type", "qwen3_next"},
                                         {"vocab_size", kVocabulary},
                                         {"hidden_size", kHidden},
                                         {"intermediate_size", kFeedForward},
                                         {"num_hidden_layers", kLayers},
                                         {"num_attention_heads", 4},
                                         {"num_key_value_heads", 2},
                                         {"head_dim", kHeadDim},
                                         {"linear_num_key_heads", kKeyHeads},
                                         {"linear_num_value_heads", kValueHeads},
                                         {"linear_key_head_dim", kHeadDim},
                                         {"linear_value_head_dim", kHeadDim},
                                         {"num_experts", 0},
                                         {"layer_types", std::vector<std::string>(kLayers, "linear_attention")},
                                         {"max_position_embeddings", 1 << 20},
                                         {"tie_word_embeddings", true}},
                                        true)) {
    decoder_.parameters().initialise(0);
    gradient_ = at::zeros_like(decoder_.parameters().flat());
    decoder_.parameters().bind_gradients(gradient_);
  }
  void run(int64_t tokens) {
    const at::Tensor ids = at::randint(0, kVocabulary, {tokens + 1}).to(at::kInt);
    decoder_.loss(ids.narrow(0, 0, tokens).contiguous(), ids.narrow(0, 1, tokens).contiguous(), pass_of(tokens),
                  1.0 / static_cast<double>(tokens), 0, true);
  }
  int64_t parameters() const { return decoder_.parameters().numel(); }

 private:
  models::Decoder decoder_;
  at::Tensor gradient_;
};

// Tokens a second at each length: rounds take the lengths in turns, the shorter ones as often as it takes to see as
// many tokens as the longest.
template <class Run>
std::vector<double> rates(const DeltaBenchOptions& options, Run run) {
  const int64_t most = *std::max_element(options.tokens.begin(), options.tokens.end());
  std::vector<std::vector<double>> seen(options.tokens.size());
  for (int64_t round = -1; round < options.rounds; ++round) {
    for (size_t i = 0; i < options.tokens.size(); ++i) {
      const int64_t tokens = options.tokens[i], times = std::max<int64_t>(1, most / tokens);
      const double seconds = seconds_of([&] {
        for (int64_t n = 0; n < times; ++n) run(tokens);
      });
      if (round >= 0) seen[i].push_back(static_cast<double>(tokens * times) / seconds);
    }
  }
  std::vector<double> medians;
  for (auto& one : seen) medians.push_back(median(one));
  return medians;
}

}  // namespace

nlohmann::ordered_json bench_delta(const DeltaBenchOptions& options) {
  if (options.rounds < 1)
    throw std::invalid_argument(fmt::format("rounds: found {}, expected 1 or more", options.rounds));
  if (options.tokens.empty()) throw std::invalid_argument("tokens: found no length, expected at least one");
  for (const int64_t tokens : options.tokens)
    if (tokens < 1) throw std::invalid_argument(fmt::format("tokens: found {}, expected 1 or more", tokens));
  at::manual_seed(0);
  Layer layer;
  Model model;
  nlohmann::ordered_json out{{"params", model.parameters()}, {"threads", at::get_num_threads()}};
  const auto add = [&](const std::string& name, const std::vector<double>& found) {
    for (size_t i = 0; i < found.size(); ++i)
      out[fmt::format("{}_tokens_per_s_at_{}", name, options.tokens[i])] = found[i];
    out[name + "_last_over_first"] = found.back() / found.front();
  };
  add("layer", rates(options, [&](int64_t tokens) { layer.run(tokens); }));
  add("model", rates(options, [&](int64_t tokens) { model.run(tokens); }));
  out["peak_rss_mib"] = peak_rss_mib();
  return out;
}

}  // namespace cairn::bench
