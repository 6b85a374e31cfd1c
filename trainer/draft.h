// Speculative decoding (Leviathan 2023) with the model's own modules that predict further tokens (models/mtp.h): they
// draft, the model itself decides over all drafts in one pass.
#pragma once

#include <functional>
#include <vector>

#include "models/decoder.h"

namespace cairn {

// Drafts for one sequence, at most one a module: module d drafts the token d places after the next one.
class MtpDrafter {
 public:
  // Up to eight rows go through kernels that compute each row as if it were alone (kernels/linear.h): one token that is
  // known and these.
  static constexpr int64_t kMost = 7;

  // For a sequence of at most `capacity` tokens. Keeps a reference. Throws std::invalid_argument where the model has no
  // such modules.
  MtpDrafter(const models::Decoder& model, int64_t capacity);

  // hidden [n, C]: Decoder::hidden of the next n tokens of the sequence, which will not be taken back.
  void saw(const at::Tensor& hidden);

  // The tokens that follow `known`, whose hidden states have been seen but for the last one's: up to `count`, fewer
  // where there are fewer modules. `draw` chooses a token from logits [V] for the place `index` of the sequence.
  using Draw = std::function<int32_t(const float* logits, int64_t index)>;
  std::vector<int32_t> propose(const std::vector<int32_t>& known, int64_t count, const Draw& draw);

 private:
  const models::Decoder& model_;
  // By module: what it reads, [capacity, C] by position, and its cache, whose length counts the positions that it has
  // read with tokens that are known.
  std::vector<at::Tensor> hidden_;
  std::vector<models::SequenceCache> caches_;
  int64_t seen_ = 0;
};

// What a pass of several rows may have to undo: recurrent states, which unlike rows of keys cannot be cut short.
class StatesBefore {
 public:
  explicit StatesBefore(const models::SequenceCache& cache);
  bool any() const { return !states_.empty(); }
  // The cache as it was.
  void restore(models::SequenceCache& cache) const;

 private:
  int64_t length_;
  std::vector<at::Tensor> states_;
};

}  // namespace cairn
