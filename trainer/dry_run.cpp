#include "trainer/environment.h"
#include "trainer/flops.h"
#include "trainer/objectives/objective.h"
#include "trainer/run_files.h"
#include "trainer/setup.h"
#include "trainer/train.h"
#include "trainer/trajectory.h"

namespace cairn {

using Json = nlohmann::ordered_json;

nlohmann::ordered_json dry_run(const config::RunConfig& config) {
  const TokenizerPtr tokenizer = make_tokenizer(config);
  const models::DecoderConfig decoder_config = make_decoder_config(config, *tokenizer);
  check_samples(config, *tokenizer, decoder_config);
  check_experts(config, decoder_config);
  check_modules(config, decoder_config);
  check_indexer(config, decoder_config);
  const auto data = make_dataset(config, tokenizer, {});
  make_objective(config, tokenizer, decoder_config, *data);  // refuses what does not fit
  const auto last = last_step(config, *data);
  check_schedules(config, last);
  const models::Decoder model(decoder_config);  // memory is reserved, not touched
  const auto& stage = config.stages.front();
  const double parameters = static_cast<double>(model.parameters().numel());
  const double moments = stage.optim.name == "adamw" ? 2 : 1;
  const double lanes = std::log2(stage.train.lanes);
  // Weights, gradient, lane sums, moments, average; activations of one micro-batch by their largest parts.
  double activations = 0;
  const double rows = static_cast<double>(stage.train.micro_batch) * stage.data.context;
  for (int64_t i = 0; i < decoder_config.block_count(); ++i) {
    const models::BlockConfig& block = decoder_config.block(i);
    double width =
        static_cast<double>(2 * block.attention.num_attention_heads + 2 * block.attention.num_key_value_heads) *
        block.attention.head_dim;
    if (const auto& net = block.delta_net) {
      // The product, what the convolution makes of it, three rows of values, and a state for each 64 rows.
      width = static_cast<double>(net->product_width() + net->conv_width() + 3 * net->value_width()) +
              static_cast<double>(net->value_width() * net->key_head_dim) / 64;
    }
    activations += rows * 4 * (4.0 * decoder_config.hidden_size + width + 3.0 * block.feed_forward.intermediate_size);
  }
  if (stage.train.activation_checkpointing)
    activations = activations / decoder_config.block_count() +
                  rows * 8 * decoder_config.hidden_size * decoder_config.block_count();
  const double memory =
      4 * parameters *
          (2 + lanes + moments + (stage.optim.ema > 0 ? 1 : 0) + (config.checkpoints.async ? 1 + moments : 0)) +
      activations;
  const double checkpoint = 4 * parameters * (1 + moments + (stage.optim.ema > 0 ? 1 : 0));
  int64_t checkpoints_due = 0, trajectory_due = 0;
  if (last) {
    const auto schedule = checkpoint_schedule(config.checkpoints), trajectory = trajectory_schedule(config.trajectory);
    for (int64_t n = 0; n <= *last; ++n) checkpoints_due += schedule.due(n, *last), trajectory_due += trajectory.due(n);
  }
  // Every tensor, compressed as far as the benchmark says at worst.
  const double stored = config.trajectory.dtype == "float32" ? 4 * 0.86 : 2 * 0.72;
  const double peak = sgemm_peak_gflops(0.2);
  const int64_t step_tokens = static_cast<int64_t>(stage.train.batch) * stage.data.context;
  const double step_seconds = step_flops(model, step_tokens, stage.data.context) / 1e9 / peak / 0.7;
  int64_t train_tokens = 0;
  for (int32_t i = 0; i < data->source_count(); ++i) train_tokens += data->source(i).train_tokens;
  Json out{{"parameters", model.parameters().numel()},
           {"memory_bytes", static_cast<int64_t>(memory)},
           {"checkpoint_bytes", static_cast<int64_t>(checkpoint)},
           {"train_tokens", train_tokens},
           {"tokens_per_step", step_tokens}};
  if (last) {
    out["steps"] = *last;
    out["checkpoints"] = checkpoints_due;
    out["disk_bytes"] = static_cast<int64_t>(
        checkpoint * (config.checkpoints.keep.all ? checkpoints_due : config.checkpoints.keep.last));
    out["trajectory_steps"] = trajectory_due;
    out["trajectory_bytes"] = static_cast<int64_t>(stored * parameters * trajectory_due);
    if (train_tokens > 0) out["epochs"] = static_cast<double>(*last) * step_tokens / train_tokens;
    // How long completions become is not known before they are sampled.
    if (train_tokens > 0) out["seconds"] = step_seconds * *last;  // products at 70% of this machine's measured peak
  }
  return out;
}

}  // namespace cairn
