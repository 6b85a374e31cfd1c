// How much arithmetic a training step is.
#pragma once

#include "models/decoder.h"

namespace cairn {

// Floating-point operations of one step over `tokens` tokens in sequences of `context`: 6 for each weight of a product
// and token (2 forward, 4 backward), 12 · width · context / 2 a token and block for the causal half of attention, and
// the recurrent form's 3 · key width · value width · 6 a token and head for the delta rule, whatever the context.
inline double step_flops(const models::Decoder& model, int64_t tokens, int64_t context) {
  double weights = 0, attention = 0;
  for (const auto& parameter : model.parameters().all()) {
    const bool product = parameter.role == models::Role::matrix || parameter.role == models::Role::head ||
                         (parameter.name == "model.embed_tokens.weight" && model.config().tie_word_embeddings);
    if (!product) continue;
    double active = 1;  // of a block's experts a token sees some
    if (parameter.name.find(".mlp.experts.") != std::string::npos) {
      const bool module = parameter.name.starts_with("mtp.layers.");
      const auto& blocks = module ? model.config().mtp : model.config().blocks;
      const auto& experts = blocks.at(std::stoul(parameter.name.substr(module ? 11 : 13))).experts;
      active = static_cast<double>(experts->num_experts_per_tok) / static_cast<double>(experts->num_experts);
    }
    // Each module that predicts further tokens takes the head once more.
    const bool head = parameter.role == models::Role::head || parameter.role == models::Role::embedding;
    if (head) active = 1 + static_cast<double>(model.config().mtp.size());
    weights += active * static_cast<double>(parameter.numel());
  }
  for (int64_t i = 0; i < model.config().block_count(); ++i) {
    const models::BlockConfig& block = model.config().block(i);
    if (const auto& net = block.delta_net) {
      attention += 18.0 * net->num_value_heads * net->key_head_dim * net->value_head_dim;
      continue;
    }
    attention += 6.0 * block.attention.num_attention_heads * block.attention.head_dim * context;
  }
  return tokens * (6 * weights + attention);
}

}  // namespace cairn
