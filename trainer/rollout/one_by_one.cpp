// Models that cannot keep pages: one sequence after the other, each with a cache of its own.
#include <fmt/format.h>

#include <stdexcept>

#include "trainer/rollout/run.h"

namespace cairn::rollout {
namespace {

models::SequenceCache copy_of(const models::SequenceCache& cache) {
  models::SequenceCache copy = cache;
  for (models::LayerCache& layer : copy.layers) {
    for (at::Tensor& rows : layer.rows) rows = rows.clone();
    for (at::Tensor& state : layer.states) state = state.clone();
  }
  return copy;
}

int64_t bytes_of(const models::SequenceCache& cache) {
  int64_t bytes = 0;
  for (const models::LayerCache& layer : cache.layers) {
    for (const at::Tensor& rows : layer.rows) bytes += static_cast<int64_t>(rows.nbytes());
    for (const at::Tensor& state : layer.states) bytes += static_cast<int64_t>(state.nbytes());
  }
  return bytes;
}

}  // namespace

void Engine::one_by_one(Run& run) {
  // The logits that follow `fresh`, which the cache has not seen: float32 [1, V] on the CPU.
  const auto logits_after = [&](const std::vector<int32_t>& fresh, models::SequenceCache& cache) {
    const int64_t rows = static_cast<int64_t>(fresh.size());
    const at::Tensor ids = at::empty({rows}, at::kInt), positions = at::empty({rows}, at::kInt);
    for (int64_t r = 0; r < rows; ++r) {
      ids.data_ptr<int32_t>()[r] = fresh[r];
      positions.data_ptr<int32_t>()[r] = static_cast<int32_t>(cache.length + r);
    }
    models::Pass pass = pass_of(1, rows);
    pass.positions = positions;
    pass.cache = &cache;
    const at::Tensor hidden = model_.hidden(ids, pass);
    return model_.logits(hidden.narrow(0, rows - 1, 1), pass).to(at::kFloat).cpu().contiguous();
  };
  for (const auto& group : run.groups) {
    models::SequenceCache prompt = model_.make_cache(group->length() + group->budget);
    // The prompt's and the running sample's.
    if (const int64_t bytes = 2 * bytes_of(prompt); bytes > options_.cache_mib << 20)
      throw std::invalid_argument(
          fmt::format("prompt_index {}: {} tokens and a completion of {} take {} bytes; the "
                      "cache has {} MiB (cache_mib)",
                      group->request->prompt_index, group->length(), group->budget, bytes, options_.cache_mib));
    const at::Tensor first = logits_after(group->request->prompt, prompt);
    stats_.prompt_tokens += group->length();
    for (int64_t sample = 0; sample < group->request->samples; ++sample) {
      models::SequenceCache cache = sample + 1 < group->request->samples ? copy_of(prompt) : std::move(prompt);
      Completion completion(tokenizer_, run.sampling.stop, run.ends, group->budget);
      at::Tensor logits = first;
      while (true) {
        Draw draw = run.draw_of(*group, sample, completion.size(), logits.const_data_ptr<float>());
        draw_all({&draw, 1}, logits.size(1), run.sampling, run.ends);
        run.progress.tokens = ++stats_.tokens;
        if (completion.push(draw.id, draw.logprob)) break;
        logits = logits_after({draw.id}, cache);
        ++stats_.steps;
        stats_.most_running = 1;
        run.report();
      }
      run.finished(*group, sample, completion, stats_);
      run.report();
    }
  }
}

}  // namespace cairn::rollout
