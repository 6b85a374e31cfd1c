#include "trainer/bench/moe.h"

#include "models/families/family.h"
#include "models/random.h"
#include "trainer/bench/sizes.h"
#include "trainer/step.h"

namespace cairn::bench {
namespace {

constexpr int64_t kContext = 256, kVocabulary = 4096, kExpertWidth = 128;

nlohmann::ordered_json shape(int64_t ffn) {
  return {
      {"vocab_size", kVocabulary},  {"hidden_size", 256}, {"num_hidden_layers", 4},   {"num_attention_heads", 8},
      {"num_key_value_heads", 4},   {"head_dim", 32},     {"intermediate_size", ffn}, {"max_position_embeddings", 512},
      {"tie_word_embeddings", true}};
}

nlohmann::ordered_json mixture(int64_t experts, int64_t topk) {
  auto json = shape(512);
  json["model_type"] = "qwen3_moe";
  json["moe_intermediate_size"] = kExpertWidth;
  json["num_experts"] = experts;
  json["num_experts_per_tok"] = topk;
  json["norm_topk_prob"] = true;
  return json;
}

nlohmann::ordered_json dense(int64_t topk) {
  auto json = shape(kExpertWidth * topk);
  json["model_type"] = "qwen3";
  return json;
}

data::Batch random_rows(int64_t first, int64_t count) {
  data::Batch batch{.rows = count, .context = kContext};
  const Philox draws{1, Purpose::data, 0};
  for (int64_t row = first; row < first + count; ++row) {
    for (int64_t t = 0; t < kContext; ++t) {
      const int64_t i = row * (kContext + 1) + t;
      batch.inputs.push_back(static_cast<int32_t>(draws.bits64(i) % kVocabulary));
      batch.targets.push_back(static_cast<int32_t>(draws.bits64(i + 1) % kVocabulary));
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.segments.push_back(0);
    }
  }
  return batch;
}

class Trained {
 public:
  Trained(const nlohmann::ordered_json& config, parallel::World& world)
      : state_(models::decoder_config(config, true), at::kFloat, world, 1, 0) {
    state_.model().parameters().initialise(0);
    optim::OptimizerOptions adamw = optim::defaults("adamw");
    adamw.lr = 3e-4;
    state_.set_optimizer(adamw, 0);
  }
  double step(const MoeBenchOptions& options) {
    const int64_t batch = options.batch * options.micro_batches;
    const StepData data{
        .context = kContext, .targets = batch * kContext, .rows_count = batch * kContext, .rows = random_rows};
    const StepSettings settings{.batch = batch, .micro_batch = options.batch, .lanes = 1, .lr = 3e-4};
    return seconds_of([&] { train_step(state_, data, settings); });
  }
  int64_t parameters() { return state_.model().parameters().numel(); }

 private:
  State state_;
};

}  // namespace

nlohmann::ordered_json bench_moe(const MoeBenchOptions& options) {
  const auto world = parallel::World::join();
  nlohmann::ordered_json out{{"threads", at::get_num_threads()}};
  for (const int64_t experts : options.experts) {
    Trained sparse(mixture(experts, options.topk), *world), plain(dense(options.topk), *world);
    std::vector<double> own, other, ratios;
    for (int i = -options.warmup; i < options.steps; ++i) {
      const double a = sparse.step(options), b = plain.step(options);
      if (i < 0) continue;
      own.push_back(a), other.push_back(b), ratios.push_back(b / a);
    }
    const double tokens = static_cast<double>(options.batch * options.micro_batches * kContext);
    out[fmt::format("e{}", experts)] = {{"params", sparse.parameters()},
                                        {"dense_params", plain.parameters()},
                                        {"tokens_per_s", tokens / median(own)},
                                        {"dense_tokens_per_s", tokens / median(other)},
                                        {"ratio", median(ratios)},
                                        {"step_s", median(own)}};
  }
  world->leave();
  return out;
}

}  // namespace cairn::bench
