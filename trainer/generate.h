// Sampling from a model, one sequence, with a key/value cache.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn {

struct SamplingOptions {
  int64_t max_tokens = 128;
  int64_t min_tokens = 0;    // before that many, no token that ends a text is drawn; stop strings count all the same
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // 0: off
  double top_p = 1.0;        // smallest set of tokens of at least this mass
  double min_p = 0;          // tokens below min_p times the largest probability are left out
  uint64_t seed = 0;
  std::vector<std::string> stop;  // text after which to stop; cut from the text
  bool stop_at_eos = true;        // the tokenizer's end of a text, and `end_ids`
  std::vector<int32_t> end_ids;   // what else ends a text (end_ids)
  // mtp: the modules that predict further tokens draft, the model checks all drafts in one pass. A draft stands where
  // it is the token that the model would have drawn there, so tokens and log-probabilities are those of generation
  // without drafts, at any temperature: on a CPU to the bit.
  std::string draft;  // "": none
};

struct Generation {
  std::vector<int32_t> ids;     // the new tokens
  std::vector<float> logprobs;  // of softmax(logits / temperature) before top-k, top-p, min-p; greedy: temperature 1
  std::string text;
  std::string finish_reason;          // eos, stop, length
  int64_t drafted = 0, accepted = 0;  // tokens that were drafted, and those of them that stood
};

// eos_token_id, a number or several, of a model folder's generation_config.json, else of its config.json, or of a GGUF
// file.
std::vector<int32_t> end_ids(const std::string& folder);

// Throws std::invalid_argument for options out of range and for a prompt that leaves no room in the model's context.
void check(const SamplingOptions& options);

class Generator {
 public:
  // Keeps references to both.
  Generator(const models::Decoder& model, const data::Tokenizer& tokenizer) : model_(model), tokenizer_(tokenizer) {}

  // `on_text` receives the text as it grows. The draw of a token is a function of (seed, position) alone.
  Generation run(const std::vector<int32_t>& prompt, const SamplingOptions& options,
                 const std::function<void(std::string_view)>& on_text = {}) const;

 private:
  // Hidden states [ids.size(), C] of tokens that follow those of the cache.
  at::Tensor forward(const std::vector<int32_t>& ids, models::SequenceCache& cache) const;

  const models::Decoder& model_;
  const data::Tokenizer& tokenizer_;
};

// The token drawn from logits [V] with a uniform number in [0, 1), and its log-probability as Generation defines it.
std::pair<int32_t, float> sample_token(const float* logits, int64_t vocabulary, const SamplingOptions& options,
                                       double uniform);
// The same, where none of `barred` may be drawn; the log-probability is still that among all tokens.
std::pair<int32_t, float> sample_token(const float* logits, int64_t vocabulary, const SamplingOptions& options,
                                       double uniform, std::span<const int32_t> barred);

// What ends a text: the tokenizer's end and `end_ids`; nothing without `stop_at_eos`.
std::vector<int32_t> ending_ids(const data::Tokenizer& tokenizer, const SamplingOptions& options);

}  // namespace cairn
