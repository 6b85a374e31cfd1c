#include "trainer/bench/rollout.h"

#include "models/families/family.h"
#include "trainer/bench/sizes.h"
#include "trainer/environment.h"
#include "trainer/rollout/engine.h"

namespace cairn::bench {
namespace {

constexpr int64_t kPrompt = 16;  // tokens of a prompt of the batch

std::vector<int32_t> prompt_of(int64_t length, int64_t which, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>((i * 7919 + which * 104729 + 1) % vocabulary));
  return ids;
}

nlohmann::ordered_json bench_size(const RolloutBenchOptions& options, const Size& size) {
  const int64_t context = std::max(kPrompt, options.group_prompt) + options.tokens;
  models::Decoder model(models::decoder_config(llama_config(size, context), true), at::kFloat);
  model.parameters().initialise(0);
  const auto tokenizer = data::Tokenizer::bytes();
  rollout::Engine engine(model, *tokenizer, {.max_batch = std::max(options.batch, options.group)});
  const Generator generator(model, *tokenizer);
  SamplingOptions sampling{.max_tokens = options.tokens, .stop_at_eos = false};

  std::vector<rollout::Request> many;
  for (int64_t i = 0; i < options.batch; ++i) many.push_back({prompt_of(kPrompt, i, size.vocabulary), i, 1});
  const rollout::Request group{prompt_of(options.group_prompt, 0, size.vocabulary), 0, options.group};

  std::vector<double> batch_s, group_s, alone_s, peak;
  for (int round = -1; round < options.rounds; ++round) {
    const double b = seconds_of([&] { engine.run(many, sampling, round + 1); });
    const double g = seconds_of([&] { engine.run({&group, 1}, sampling, round + 1); });
    if (round < 0) continue;  // caches, threads and pages
    batch_s.push_back(b);
    group_s.push_back(g);
    alone_s.push_back(seconds_of([&] {
      for (int64_t s = 0; s < options.group; ++s) {
        sampling.seed = s;
        generator.run(group.prompt, sampling);
      }
    }));
    peak.push_back(sgemm_peak_gflops(0.5));
  }
  const int64_t params = model.parameters().numel();
  const double rate = options.batch * options.tokens / median(batch_s), bound = median(peak) * 1e9 / (2.0 * params);
  return {{"params", params},
          {"tokens_per_s", rate},
          {"sgemm_peak_gflops", median(peak)},
          {"bound_tokens_per_s", bound},
          {"share_of_bound", rate / bound},
          {"group_s", median(group_s)},
          {"one_after_another_s", median(alone_s)},
          {"speedup", median(alone_s) / median(group_s)}};
}

}  // namespace

nlohmann::ordered_json bench_rollout(const RolloutBenchOptions& options) {
  for (const auto& [key, value] : {std::pair{"batch", options.batch},
                                   {"tokens", options.tokens},
                                   {"group", options.group},
                                   {"group-prompt", options.group_prompt},
                                   {"rounds", int64_t{options.rounds}}}) {
    if (value < 1) throw std::invalid_argument(fmt::format("{}: found {}, expected 1 or more", key, value));
  }
  at::NoGradGuard no_grad;
  nlohmann::ordered_json result{{"threads", at::get_num_threads()},
                                {"batch", options.batch},
                                {"tokens", options.tokens},
                                {"group", options.group},
                                {"group_prompt", options.group_prompt}};
  for (const std::string& size : options.sizes) result[size] = bench_size(options, size_named(size));
  return result;
}

}  // namespace cairn::bench
