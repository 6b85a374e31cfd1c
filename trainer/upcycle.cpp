#include "trainer/upcycle.h"

#include "models/families/family.h"

namespace cairn {
namespace {

struct Mixture {
  const char* dense;
  const char* model_type;
  const char* experts_key;
  const char* width_key;  // of an expert
};
constexpr Mixture kMixtures[] = {{"llama", "mixtral", "num_local_experts", "intermediate_size"},
                                 {"mistral", "mixtral", "num_local_experts", "intermediate_size"},
                                 {"qwen3", "qwen3_moe", "num_experts", "moe_intermediate_size"}};

const Mixture& mixture_of(const std::string& dense) {
  std::string known;
  for (const Mixture& mixture : kMixtures) {
    if (dense == mixture.dense) return mixture;
    known += (known.empty() ? "" : ", ") + std::string(mixture.dense);
  }
  throw std::invalid_argument(
      fmt::format("model_type: found {}, which has no family with experts here, expected one of {}", dense, known));
}

// Keys of config.json that mean the same in the mixture.
constexpr const char* kKept[] = {"vocab_size",
                                 "hidden_size",
                                 "intermediate_size",
                                 "num_hidden_layers",
                                 "num_attention_heads",
                                 "num_key_value_heads",
                                 "head_dim",
                                 "hidden_act",
                                 "max_position_embeddings",
                                 "initializer_range",
                                 "rms_norm_eps",
                                 "tie_word_embeddings",
                                 "attention_dropout",
                                 "rope_theta",
                                 "rope_scaling",
                                 "rope_parameters",
                                 "bos_token_id",
                                 "eos_token_id",
                                 "pad_token_id",
                                 "use_cache"};

}  // namespace

nlohmann::ordered_json upcycled_config(const models::DecoderConfig& dense, const UpcycleOptions& o) {
  const Mixture& mixture = mixture_of(dense.model_type);
  const nlohmann::ordered_json from = models::config_json(dense);
  const int64_t F = dense.blocks.at(0).feed_forward.intermediate_size;
  if (o.copies < 2) throw std::invalid_argument(fmt::format("copies: found {}, expected at least 2", o.copies));
  if (o.slices < 1 || F % o.slices) {
    throw std::invalid_argument(
        fmt::format("slices: found {}, expected a divisor of the feed-forward's width ({})", o.slices, F));
  }
  if (o.topk < 1 || o.topk > o.copies * o.slices || o.topk % o.slices) {
    throw std::invalid_argument(
        fmt::format("topk: found {}, expected a multiple of the slices ({}) up to the {} experts", o.topk, o.slices,
                    o.copies * o.slices));
  }
  bool windows = false, everywhere = true, biased = false;
  for (const models::BlockConfig& block : dense.blocks) {
    windows = windows || block.attention.sliding_window > 0;
    everywhere = everywhere && block.attention.sliding_window == dense.blocks[0].attention.sliding_window;
    biased = biased || block.attention.qkv_bias || block.feed_forward.bias;
  }
  const std::string type = mixture.model_type;
  if (windows && !everywhere)
    throw std::invalid_argument(fmt::format("{} has one sliding window for all blocks: this model has several", type));
  if (biased && (type == "mixtral" || dense.blocks[0].feed_forward.bias))
    throw std::invalid_argument(fmt::format("this model has biases, and {} has none", type));

  nlohmann::ordered_json to{{"model_type", type}};
  for (const char* key : kKept)
    if (from.contains(key)) to[key] = from.at(key);
  to[mixture.experts_key] = o.copies * o.slices;
  to["num_experts_per_tok"] = o.topk;
  to[mixture.width_key] = F / o.slices;
  if (type == "mixtral") {
    to["sliding_window"] = windows ? nlohmann::ordered_json(dense.blocks[0].attention.sliding_window) : nullptr;
  } else {
    to["norm_topk_prob"] = true;
    to["attention_bias"] = biased;
    to["use_sliding_window"] = windows;
    if (windows) to["sliding_window"] = dense.blocks[0].attention.sliding_window;
  }
  return to;
}

void upcycle(const models::Decoder& dense, models::Decoder& mixture, const UpcycleOptions& o) {
  const at::NoGradGuard no_grad;
  const models::Parameters& from = dense.parameters();
  mixture.parameters().initialise(o.seed);
  for (const models::Parameter& parameter : mixture.parameters().all()) {
    const at::Tensor value = parameter.value();
    if (const size_t at = parameter.name.find(".mlp.experts."); at != std::string::npos) {
      const std::string expert = parameter.name.substr(at + 13);
      const int64_t slice = std::stoll(expert) % o.slices;
      const at::Tensor whole = from.at(parameter.name.substr(0, at) + ".mlp" + expert.substr(expert.find('.'))).value();
      if (expert.find(".down_proj.") == std::string::npos) {
        value.copy_(whole.narrow(0, slice * value.size(0), value.size(0)));
      } else {
        value.copy_(whole.narrow(1, slice * value.size(1), value.size(1)).mul(static_cast<double>(o.slices)));
      }
    } else if (parameter.name.ends_with(".mlp.gate.weight")) {
      // The slices of a copy share the router of its first.
      for (int64_t e = 0; e < value.size(0); ++e)
        if (e % o.slices) value[e].copy_(value[e - e % o.slices]);
    } else {
      value.copy_(from.at(parameter.name).value());
    }
  }
}

}  // namespace cairn
