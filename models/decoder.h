// The decoder: embedding, blocks, final norm, head. One class serves every family.
#pragma once

#include "models/decoder_config.h"
#include "models/kernels/cross_entropy.h"

namespace cairn::models {

class Block {
 public:
  Block(Parameters& parameters, const std::string& name, const DecoderConfig& config, int64_t index,
        std::shared_ptr<RopeTable> rope);

  // The residual stream and what is still to be added to it: the addition is fused into the next norm.
  struct Stream {
    at::Tensor x;        // [N, C]
    at::Tensor pending;  // [N, C] or undefined
  };
  Stream forward(const Stream& in, const Pass& pass) const;
  const Mixer& mixer() const { return *mixer_; }

 private:
  at::Tensor dropped(const at::Tensor& x, int64_t place, const Pass& pass) const;

  int64_t index_;
  bool parallel_;
  std::unique_ptr<Mixer> mixer_;
  std::unique_ptr<FeedForwardLayer> feed_forward_;
  Norm pre_mixer_, post_mixer_, pre_feed_forward_, post_feed_forward_;
};

struct Loss {
  double nll = 0;       // sum over the target tokens, nats
  double z = 0;         // sum of log^2 Z
  int64_t correct = 0;  // argmax is the target
  at::Tensor row_nll;   // [N]
  at::Tensor sums;      // Pass::keep_sums on a GPU: float64 [nll, z, correct] there, and the three above are not filled
};

class Decoder {
 public:
  // Builds the model; weights are uninitialised until parameters().initialise() or a load.
  Decoder(DecoderConfig config, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU);

  // ids int32 [N] -> hidden states after the final norm, [N, C].
  at::Tensor hidden(const at::Tensor& ids, const Pass& pass) const;
  // hidden [N, C] -> [N, V], soft-capped; for a few rows: training never holds logits.
  at::Tensor logits(const at::Tensor& hidden, const Pass& pass) const;

  // Loss and, with `gradients`, the whole backward pass: adds to every parameter's gradient that of
  // scale * (sum of nll + z_loss * sum of log^2 Z). targets int32 [N], -1 = not predicted; they may lie on the CPU
  // whatever the model's device (and are best there: which rows count is then known without waiting).
  Loss loss(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass, double scale, double z_loss,
            bool gradients) const;

  // A cache for one sequence of at most `capacity` tokens.
  SequenceCache make_cache(int64_t capacity) const;

  // Pages for many sequences (Pass::paged), a pool for each block.
  std::vector<kernels::KeyValuePages> make_pages(int64_t pages, int64_t page_size) const;
  // Whether every block can keep its keys and values in pages: not latent attention, an indexer or a recurrent state.
  bool pageable() const;
  // log softmax(logits / temperature)[targets], float32 [N], of hidden [N, C]: the bits of Loss::row_nll where the
  // temperature is 1. Throws std::invalid_argument for another one where logits are capped: the loss has no such form.
  at::Tensor log_probabilities(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                               double temperature) const;

  // Recomputes each block in the backward pass instead of keeping its activations.
  void set_activation_checkpointing(bool on) { checkpointing_ = on; }

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const DecoderConfig& config() const { return config_; }

 private:
  Block::Stream run_block(size_t index, const Block::Stream& in, const Pass& pass) const;

  DecoderConfig config_;
  Parameters parameters_;
  at::Tensor embed_tokens_;     // [V, C]
  at::Tensor embed_positions_;  // [max, C] or undefined
  std::vector<Block> blocks_;
  Norm norm_;
  at::Tensor head_;       // [V, C]: the embedding itself where tied
  at::Tensor head_bias_;  // [V] or undefined
  bool checkpointing_ = false;
};

}  // namespace cairn::models
