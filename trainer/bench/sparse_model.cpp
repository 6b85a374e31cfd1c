#include "trainer/bench/sparse_model.h"

#include <fstream>

#include "models/families/family.h"
#include "models/random.h"
#include "trainer/bench/sizes.h"

namespace cairn::bench {
namespace {

using Mode = models::IndexerPass::Mode;

nlohmann::ordered_json config_of(int64_t context, int64_t topk) {
  return {{"model_type", "deepseek_v32"},
          {"vocab_size", 512},
          {"hidden_size", 256},
          {"intermediate_size", 688},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 8},
          {"q_lora_rank", 128},
          {"kv_lora_rank", 64},
          {"qk_rope_head_dim", 16},
          {"qk_nope_head_dim", 32},
          {"v_head_dim", 32},
          {"index_topk", topk},
          {"index_head_dim", 32},
          {"index_n_heads", 4},
          {"first_k_dense_replace", 1},
          {"n_routed_experts", 8},
          {"num_experts_per_tok", 2},
          {"moe_intermediate_size", 128},
          {"n_shared_experts", 1},
          {"n_group", 1},
          {"topk_group", 1},
          {"max_position_embeddings", context}};
}

at::Tensor random_ids(int64_t count, uint64_t stream) {
  const Philox draws{1, Purpose::data, stream};
  at::Tensor ids = at::empty({count}, at::kInt);
  for (int64_t i = 0; i < count; ++i) ids.data_ptr<int32_t>()[i] = static_cast<int32_t>(draws.bits64(i) % 512);
  return ids;
}

void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  return 0;
}

}  // namespace

nlohmann::ordered_json bench_sparse_model(const SparseModelBenchOptions& options) {
  struct Row {
    const char* indexer;
    Mode mode;
    bool train;
  };
  std::vector<Row> kinds{{"frozen", Mode::sparse, false}, {"trained", Mode::sparse, true}};
  if (options.dense) kinds.push_back({"none", Mode::dense, false});

  nlohmann::ordered_json out{{"model", "deepseek_v32"}, {"topk", options.topk}, {"threads", at::get_num_threads()}};
  for (const int64_t context : options.contexts) {
    models::Decoder decoder(models::decoder_config(config_of(context, options.topk), true));
    decoder.parameters().initialise(0);
    const at::Tensor gradient = at::zeros_like(decoder.parameters().flat());
    decoder.parameters().bind_gradients(gradient);
    const at::Tensor ids = random_ids(context, 0), targets = random_ids(context, 1);
    out["params"] = decoder.parameters().numel();
    for (const Row& row : kinds) {
      models::Pass pass;
      pass.length = context;
      pass.positions = at::arange(context, at::kInt);
      pass.row_scale = 1.0 / context, pass.query_scale = 1.0 / (context - 1);
      pass.indexer.mode = row.mode, pass.indexer.train = row.train;
      reset_peak();
      const double seconds = timed(
          [&] {
            gradient.zero_();
            decoder.loss(ids, targets, pass, 1.0 / context, 0, true);
          },
          1, options.repeat);
      out["rows"].push_back({{"context", context},
                             {"indexer", row.indexer},
                             {"seconds", seconds},
                             {"tokens_per_s", context / seconds},
                             {"peak_rss_mib", peak_mib()}});
    }
  }
  return out;
}

}  // namespace cairn::bench
