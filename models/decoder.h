// The decoder: embedding, blocks, final norm, head. One class serves every family.
#pragma once

#include <functional>

#include "models/kernels/cross_entropy.h"
#include "models/kernels/logprobs.h"
#include "models/mtp.h"

namespace cairn::models {

struct Loss {
  double nll = 0;       // sum over the target tokens, nats
  double z = 0;         // sum of log^2 Z
  int64_t correct = 0;  // argmax is the target
  at::Tensor row_nll;   // [N]
  at::Tensor sums;      // Pass::keep_sums on a GPU: float64 [nll, z, correct] there, and the three above are not filled
  // The first three of each module whose loss was asked for; `sums` has them after the model's own.
  struct Further {
    double nll = 0, z = 0;
    int64_t correct = 0;
  };
  std::vector<Further> mtp;
};

// Of tokens that are given, float32 [N], 0 where there is none; on the CPU where the gradients come from there.
struct TokenScores {
  at::Tensor logprobs;  // log p(targets[n])
  at::Tensor entropy;   // of p, nats; undefined unless asked for
};
// The gradients of a loss with respect to the scores, in the places of the scores; an undefined entropy: none.
using TokenLoss = std::function<TokenScores(const TokenScores&)>;

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
  // mtp_scales: empty, or one for each of the modules that predict further tokens: to that is added the sum over them
  // of mtp_scales[m] * (sum of nll of module m over its own targets, mtp_rows). Throws std::invalid_argument on another
  // number of them.
  Loss loss(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass, double scale, double z_loss,
            bool gradients, const std::vector<double>& mtp_scales = {}) const;

  // Log-probabilities of the targets, of logits / options.temperature, and with `gradients` the whole backward pass of
  // a loss over them, which sees the scores and gives its gradients: what fine-tuning with rewards or preferences is
  // made of. targets int32 [N] on the CPU, -1 = none. options.softcap is the model's own whatever it says. Rows whose
  // gradients are zero cost the head nothing. Modules that predict further tokens take no part.
  TokenScores score(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass,
                    kernels::LogprobsOptions options, const TokenLoss& gradients = {}) const;

  // ---- modules that predict further tokens (mtp.h), counted from 0
  int64_t mtp_modules() const { return static_cast<int64_t>(mtp_.size()); }
  // hidden [N, C]: what hidden() or the module before gave for these rows; ids int32 [N]: the tokens module + 1 places
  // after theirs -> [N, C], which the head and the next module read. With a cache of make_mtp_cache the rows follow
  // those that are in it.
  at::Tensor mtp_hidden(int64_t module, const at::Tensor& hidden, const at::Tensor& ids, const Pass& pass) const;
  SequenceCache make_mtp_cache(int64_t module, int64_t capacity) const;

  // A cache for one sequence of at most `capacity` tokens.
  SequenceCache make_cache(int64_t capacity) const;

  // Pages for many sequences (Pass::paged), a pool for each block.
  std::vector<kernels::KeyValuePages> make_pages(int64_t pages, int64_t page_size) const;
  // Whether every block can keep its keys and values in pages: not latent attention, an indexer or a recurrent state.
  bool pageable() const;
  // log softmax(logits / temperature)[targets], float32 [N], of hidden [N, C]: the bits of score()'s.
  at::Tensor log_probabilities(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                               double temperature) const;

  // Recomputes each block in the backward pass instead of keeping its activations.
  void set_activation_checkpointing(bool on) { checkpointing_ = on; }

  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const DecoderConfig& config() const { return config_; }

 private:
  // What the head has to say of one hidden state: numbers, and where the backward pass begins.
  struct Prediction {
    Loss::Further sum;
    at::Tensor row_nll;         // [N]
    at::Tensor sums;            // of a GPU: float64 [nll, z, correct], and `sum` is not filled
    at::Tensor root, gradient;  // undefined: nowhere
  };
  Prediction predict(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                     const kernels::CrossEntropyOptions& options, bool gradients) const;

  DecoderConfig config_;
  Parameters parameters_;
  at::Tensor embed_tokens_;     // [V, C]
  at::Tensor embed_positions_;  // [max, C] or undefined
  std::vector<Block> blocks_;
  std::vector<MtpModule> mtp_;
  Norm norm_;
  at::Tensor head_;       // [V, C]: the embedding itself where tied
  at::Tensor head_bias_;  // [V] or undefined
  bool checkpointing_ = false;
};

}  // namespace cairn::models
