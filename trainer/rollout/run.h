// What one run of the engine holds: shared by its files alone.
#pragma once

#include <algorithm>

#include "trainer/rollout/engine.h"

namespace cairn::rollout {

// Rows of a pass for so many that count. MKL's products of up to 8 rows are another kernel's (kernels/linear.h): one
// pass must not go one way and the next the other.
inline int64_t padded_rows(int64_t rows) { return std::max<int64_t>(16, (rows + 7) / 8 * 8); }

struct Engine::Run {
  const SamplingOptions& sampling;
  uint64_t step;
  const std::function<void(const Progress&)>& on_progress;
  std::vector<std::shared_ptr<Group>> groups;
  std::vector<int32_t> ends;    // what ends a text
  std::vector<Sample> samples;  // the result, each at its place
  Progress progress;

  Draw draw_of(const Group& group, int64_t sample, int64_t drawn, const float* logits) const {
    return {.key = {.step = step,
                    .prompt = static_cast<uint64_t>(group.request->prompt_index),
                    .sample = static_cast<uint64_t>(sample),
                    .position = static_cast<uint64_t>(group.length() + drawn)},
            .logits = logits,
            .may_end = drawn >= sampling.min_tokens};
  }
  void finished(const Group& group, int64_t index, Completion& completion, Stats& stats) {
    Sample sample = completion.finish();
    sample.prompt_index = group.request->prompt_index, sample.sample_index = index;
    if (sample.finish_reason == "length" && group.budget < sampling.max_tokens) ++stats.truncated;
    samples[group.place + index] = std::move(sample);
    ++progress.finished;
  }
  void report() const {
    if (on_progress) on_progress(progress);
  }
};

}  // namespace cairn::rollout
