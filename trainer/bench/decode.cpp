#include "trainer/bench/decode.h"

#include "models/families/family.h"
#include "trainer/bench/sizes.h"
#include "trainer/generate.h"

namespace cairn::bench {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

// Sum of [begin, end) in 64 sums, so that no addition waits for another.
__attribute__((target_clones("default", "avx2", "avx512f"), optimize("O3"))) float sum_of(const float* begin,
                                                                                          const float* end) {
  float sums[64] = {};
  for (; begin + 64 <= end; begin += 64) {
    for (int i = 0; i < 64; ++i) sums[i] += begin[i];
  }
  float total = 0;
  for (float s : sums) total += s;
  for (; begin < end; ++begin) total += *begin;
  return total;
}

// Seconds to read `memory` once with all threads, each its own part from one end to the other.
double read_seconds(const at::Tensor& memory, double& sink) {
  const float* data = memory.const_data_ptr<float>();
  const int64_t count = memory.numel(), parts = at::get_num_threads();
  return seconds_of([&] {
    double total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total) num_threads(parts)
    for (int64_t part = 0; part < parts; ++part)
      total += sum_of(data + count * part / parts, data + count * (part + 1) / parts);
    sink += total;
  });
}

// Bytes of the weights that one token reads.
int64_t bytes_of_token(const models::Decoder& model) {
  int64_t count = 0;
  for (const auto& parameter : model.parameters().all()) {
    if (parameter.role != models::Role::embedding || model.config().tie_word_embeddings) count += parameter.numel();
  }
  return count * static_cast<int64_t>(sizeof(float));
}

}  // namespace

nlohmann::ordered_json bench_decode(const DecodeBenchOptions& options) {
  if (options.tokens < 1)
    throw std::invalid_argument(fmt::format("tokens: found {}, expected 1 or more", options.tokens));
  if (options.rounds < 1)
    throw std::invalid_argument(fmt::format("rounds: found {}, expected 1 or more", options.rounds));
  const Size& s = size_named(options.size);
  at::NoGradGuard no_grad;
  models::Decoder model(models::decoder_config(llama_config(s, options.tokens + 1), true), at::kFloat);
  model.parameters().initialise(0);
  const auto tokenizer = data::Tokenizer::bytes();
  const Generator generator(model, *tokenizer);
  const SamplingOptions greedy{.max_tokens = options.tokens, .temperature = 0, .stop_at_eos = false};
  const int64_t bytes = bytes_of_token(model);
  const at::Tensor memory = at::ones({std::max(bytes, kGib / 2) / static_cast<int64_t>(sizeof(float))}, at::kFloat);

  double sink = 0;
  std::vector<double> decode, read;
  for (int round = -1; round < options.rounds; ++round) {
    const double decoded = seconds_of([&] { sink += generator.run({1}, greedy).ids.size(); });
    std::vector<double> reads;
    for (int i = 0; i < 5; ++i) reads.push_back(read_seconds(memory, sink));
    if (round < 0) continue;  // caches, threads and pages
    decode.push_back(decoded);
    read.push_back(median(reads));
  }
  const double tokens_per_s = options.tokens / median(decode);
  const double read_rate = memory.numel() * sizeof(float) / median(read), bound = read_rate / bytes;
  return {{"size", options.size},
          {"params", model.parameters().numel()},
          {"threads", at::get_num_threads()},
          {"tokens", options.tokens},
          {"bytes_per_token", bytes},
          {"tokens_per_s", tokens_per_s},
          {"read_gib_per_s", read_rate / kGib},
          {"bound_tokens_per_s", bound},
          {"share_of_bandwidth", tokens_per_s / bound},
          {"checksum", sink}};
}

}  // namespace cairn::bench
