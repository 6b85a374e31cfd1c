#include "trainer/rollout/sampler.h"

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "models/random.h"

namespace cairn::rollout {

double uniform_of(uint64_t seed, const DrawKey& key) {
  return Philox{seed, Purpose::sample, key.sample << 32 | key.position}.uniform(key.step << 32 | key.prompt);
}

void draw_all(std::span<Draw> draws, int64_t vocabulary, const SamplingOptions& options,
              const std::vector<int32_t>& ends) {
  const int64_t count = static_cast<int64_t>(draws.size());
#pragma omp parallel for schedule(dynamic, 1) if (count * vocabulary > 8192)
  for (int64_t i = 0; i < count; ++i) {
    Draw& draw = draws[i];
    const std::span<const int32_t> barred = draw.may_end ? std::span<const int32_t>() : ends;
    std::tie(draw.id, draw.logprob) =
        sample_token(draw.logits, vocabulary, options, uniform_of(options.seed, draw.key), barred);
  }
  for (const Draw& draw : draws) {
    if (!std::isfinite(draw.logprob))
      throw std::runtime_error(
          fmt::format("rollout: the logits are not finite: prompt_index {}, sample {}, position {}; log-probability {}",
                      draw.key.prompt, draw.key.sample, draw.key.position, draw.logprob));
  }
}

}  // namespace cairn::rollout
