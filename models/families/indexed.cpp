// Families of our own: an ordinary model with a lightning indexer beside each attention. Their folders say so by their
// model_type, so that nobody takes them for dense ones; `cairn export --drop-indexer` writes the dense model.
#include "models/families/latent.h"

namespace cairn::models {
namespace {

DecoderConfig with_indexer(ConfigReader& reader, const Family& dense) {
  DecoderConfig config = dense.from_config(reader);
  const AttentionConfig& attention = config.blocks[0].attention;
  const int64_t rotary = attention.rope->rotary_dim;
  IndexerConfig indexer = index_keys(
      reader,
      {.index_topk = 2048, .index_n_heads = attention.num_attention_heads, .index_head_dim = attention.head_dim},
      rotary);
  indexer.query = "wq";  // there is no latent: queries come from what attention reads
  indexer.interleaved = attention.rope->interleaved;
  indexer.init_std = config.init_std;
  for (BlockConfig& block : config.blocks) {
    if (block.attention.sliding_window)
      throw ConfigError("sliding_window", "found a window beside an indexer, which chooses among all earlier tokens");
    block.indexer = indexer;
  }
  return config;
}

DecoderConfig llama(ConfigReader& reader) { return with_indexer(reader, llama_family); }
DecoderConfig qwen3(ConfigReader& reader) { return with_indexer(reader, qwen3_family); }

}  // namespace

const Family llama_dsa_family{"llama_dsa", "LlamaDsaForCausalLM", "model.", llama, same_name, nullptr, "llama"};
const Family qwen3_dsa_family{"qwen3_dsa", "Qwen3DsaForCausalLM", "model.", qwen3, same_name, nullptr, "qwen3"};

}  // namespace cairn::models
