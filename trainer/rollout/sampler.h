// Draws tokens by counter: what a sample gets depends on no other sample.
#pragma once

#include <span>

#include "trainer/generate.h"

namespace cairn::rollout {

// Where a token stands: the whole key of its random number, beside the seed.
struct DrawKey {
  uint64_t step = 0, prompt = 0, sample = 0;  // each below 2^32
  uint64_t position = 0;                      // in prompt and completion
};

// Uniform in [0, 1). Sample 0 of prompt 0 of step 0 has the numbers of Generator::run.
double uniform_of(uint64_t seed, const DrawKey& key);

struct Draw {
  DrawKey key;
  const float* logits = nullptr;  // [V]
  bool may_end = true;            // false: no token that ends a text
  int32_t id = -1;                // filled in
  float logprob = 0;              // likewise
};

// Fills in every draw, on all threads. Throws std::runtime_error naming the place where no logit is a number.
void draw_all(std::span<Draw> draws, int64_t vocabulary, const SamplingOptions& options,
              const std::vector<int32_t>& ends);

}  // namespace cairn::rollout
