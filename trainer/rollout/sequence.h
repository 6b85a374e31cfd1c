// A prompt and the completions that grow from it.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "trainer/generate.h"
#include "trainer/text_stream.h"

namespace cairn::rollout {

struct Request {
  std::vector<int32_t> prompt;
  int64_t prompt_index = 0;  // keys the random numbers: one for each prompt of a step (tries included), below 2^32
  int64_t samples = 1;       // completions: num_generations
};

struct Sample {
  std::vector<int32_t> ids;     // the completion; a token that ends it (eos) is its last one
  std::vector<float> logprobs;  // of each id, of softmax(logits / temperature) before top-k, top-p, min-p, min_tokens;
                                // greedy: of temperature 1
  std::string finish_reason;    // eos, stop, length
  std::string text;             // without what ended it
  int64_t prompt_index = 0, sample_index = 0;
};

// A completion that is being drawn.
class Completion {
 public:
  // `budget`: of tokens, at least 1. Keeps references to `tokenizer` and `ends`.
  Completion(const data::Tokenizer& tokenizer, const std::vector<std::string>& stop, const std::vector<int32_t>& ends,
             int64_t budget)
      : ends_(ends), budget_(budget), text_(tokenizer, stop) {}

  // True: this token was the last.
  bool push(int32_t id, float logprob);
  int64_t size() const { return static_cast<int64_t>(ids_.size()); }
  int32_t last() const { return ids_.back(); }
  // What was drawn; the completion is given up.
  Sample finish();

 private:
  const std::vector<int32_t>& ends_;
  int64_t budget_;
  TextStream text_;
  std::vector<int32_t> ids_;
  std::vector<float> logprobs_;
  std::string finish_reason_ = "length";
};

// A prompt, computed once for all of its samples.
struct Group {
  const Request* request = nullptr;
  int64_t place = 0;    // of its first sample in the result
  int64_t budget = 0;   // tokens of each completion
  int64_t started = 0;  // samples that have been let in
  bool computed = false;
  std::vector<int32_t> pages;  // of the prompt, held until the last sample is let in
  at::Tensor hidden, logits;   // [1, C] and [1, V] of the prompt's last row: the first token comes from them

  int64_t length() const { return static_cast<int64_t>(request->prompt.size()); }
};

struct Sequence {
  std::shared_ptr<Group> group;
  int64_t sample = 0;
  Completion completion;
  std::vector<int32_t> pages = {};
  int64_t length = 0;    // rows in the pages
  int64_t promised = 0;  // pages that it may still take
};

}  // namespace cairn::rollout
