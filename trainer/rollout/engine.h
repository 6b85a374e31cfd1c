// Rollouts: many completions of many prompts, from the weights and kernels that train.
//
// Continuous batching (Orca, Yu et al. 2022) over a paged key/value cache (vLLM, Kwon et al. 2023): every step decodes
// one token of each running sequence in one pass; finished ones leave, waiting ones enter. A prompt is computed once
// for all of its samples, which share its pages until they write to them.
//
// A sample is a function of the weights, its prompt, the sampling options (their seed), the step, prompt_index and
// sample_index: not of what else is in the batch, of the order, the page size, the memory or the threads (on a CPU,
// with the MKL_CBWR that prepare_process sets). Its hidden states have the bits of a training pass over prompt and
// completion in which the sequence starts at a multiple of 64 in its row and that has more than 8 rows in all.
#pragma once

#include <functional>
#include <span>

#include "models/layers/paged_cache.h"
#include "trainer/rollout/sampler.h"
#include "trainer/rollout/scheduler.h"

namespace cairn::rollout {

// What to do where prompt and max_tokens exceed the model's context: refuse, or let the completion end there (its
// finish_reason is `length`, and it is counted).
enum class Overflow { error, truncate };

struct EngineOptions {
  int64_t page_size = 64;       // rows of a page: 16, 32 or a multiple of 64
  int64_t max_batch = 64;       // sequences that are decoded together
  int64_t cache_mib = 1024;     // of keys and values; sequences wait where they do not fit
  int64_t prefill_rows = 4096;  // prompt rows that one pass computes, at least one prompt
  bool exact = false;           // log-probabilities with the bits of Decoder::score, in float32 on a CPU
  Overflow overflow = Overflow::error;
  models::Pass like;  // the trainer's: `reference`, `aten`, `products` and `indexer` are taken over
};

// Throws std::invalid_argument naming the option that is out of range.
void check(const EngineOptions& options);

struct Progress {
  int64_t finished = 0, samples = 0;  // completions
  int64_t tokens = 0;                 // drawn so far
};

// Of one run.
struct Stats {
  int64_t steps = 0;          // passes that decoded
  int64_t prompt_tokens = 0;  // computed: each prompt once
  int64_t tokens = 0;         // drawn
  int64_t truncated = 0;      // completions that the context ended before max_tokens
  int64_t waited = 0;         // steps in which a free place was not taken for want of memory
  int64_t most_running = 0, most_pages = 0, pages = 0;
};

class Engine {
 public:
  // Keeps references to both. Throws std::invalid_argument for options out of range, and for `exact` with a model or
  // precision whose rollouts cannot have the trainer's bits.
  //
  // NOTE: a model of which a block cannot keep pages (latent attention, a lightning indexer, Gated DeltaNet:
  // Decoder::pageable) is decoded one sequence at a time, as Generator does: slowly, and with log-probabilities that
  // agree with the trainer's up to rounding. Prompts are computed once for all samples there too.
  Engine(const models::Decoder& model, const data::Tokenizer& tokenizer, EngineOptions options);

  // The samples of every request, in the order of the requests. The seed is sampling.seed; `step` keys the random
  // numbers too. `on_progress` is called after every step; what it throws ends the run. Throws std::invalid_argument
  // for an empty prompt, an id outside the vocabulary, a prompt that fills the context (or, with Overflow::error,
  // leaves less than max_tokens), a prompt_index that occurs twice, fewer than one sample, a draft, a completion that
  // the cache cannot hold; std::runtime_error where logits are not finite.
  std::vector<Sample> run(std::span<const Request> requests, const SamplingOptions& sampling, uint64_t step,
                          const std::function<void(const Progress&)>& on_progress = {});
  // Of the last run.
  const Stats& stats() const { return stats_; }

 private:
  struct Run;  // run.h
  std::vector<std::shared_ptr<Group>> groups_of(std::span<const Request> requests, const SamplingOptions& sampling,
                                                uint64_t step) const;
  models::Pass pass_of(int64_t batch, int64_t length) const;
  void make_pages(const std::vector<std::shared_ptr<Group>>& groups);
  void compute_prompts(const std::vector<std::shared_ptr<Group>>& groups);
  void advance(const std::vector<Sequence*>& sequences, const std::vector<const float*>& logits,
               const at::Tensor& hidden, Scheduler& scheduler, Run& run);
  void decode(Scheduler& scheduler, Run& run);
  void one_by_one(Run& run);

  const models::Decoder& model_;
  const data::Tokenizer& tokenizer_;
  EngineOptions options_;
  models::PagedCache cache_;  // kept from run to run: the memory alone
  Stats stats_;
};

}  // namespace cairn::rollout
