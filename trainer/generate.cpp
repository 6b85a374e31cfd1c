#include "trainer/generate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoints/file.h"
#include "checkpoints/gguf.h"
#include "models/random.h"
#include "trainer/draft.h"
#include "trainer/model_io.h"
#include "trainer/text_stream.h"

namespace cairn {
namespace {

// Compiled for every instruction set; the loops below are written so that the compiler makes vectors of them.
#define CAIRN_VECTORS __attribute__((target_clones("default", "avx2", "avx512f"), optimize("O3")))
constexpr int64_t kLanes = 32;

CAIRN_VECTORS float largest_of(const float* x, int64_t n) {
  float most[kLanes];
  std::fill_n(most, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) most[k] = x[i + k] > most[k] ? x[i + k] : most[k];
  }
  float largest = *std::max_element(most, most + kLanes);
  for (; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// e^x for x <= 0 within 1e-15 of itself; 0 below -708; NaN stays NaN. Range reduction by ln 2 in two pieces, then
// Taylor's polynomial, whose rest is below 1e-17 there.
inline double exp_of(double x) {
  const double a = x < -708.0 ? -708.0 : x;
  const double shifted = a * 1.4426950408889634 + 0x1.8p52;  // the integer is in the low bits
  const double n = shifted - 0x1.8p52;
  const double r = (a - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  for (const double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                         1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0})
    p = p * r + c;
  const double power = std::bit_cast<double>((std::bit_cast<int64_t>(shifted) + 1023) << 52);
  return x < -708.0 ? 0.0 : p * power;
}

// The sum of exp((x - largest) * scale), which go to `mass` too unless it is null.
CAIRN_VECTORS double masses(const float* x, int64_t n, float largest, double scale, double* mass) {
  constexpr int64_t kBlock = 16 * kLanes;
  double block[kBlock], sums[kLanes] = {};
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(kBlock, n - first);
    for (int64_t i = 0; i < count; ++i)
      block[i] = exp_of((static_cast<double>(x[first + i]) - static_cast<double>(largest)) * scale);
    if (mass != nullptr) std::copy(block, block + count, mass + first);
    std::fill(block + count, block + kBlock, 0.0);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      for (int64_t k = 0; k < kLanes; ++k) sums[k] += block[i + k];
    }
  }
  return std::accumulate(sums, sums + kLanes, 0.0);
}

}  // namespace

std::vector<int32_t> end_ids(const std::string& folder) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    const bool gguf = checkpoints::is_gguf(folder);
    const std::filesystem::path path = gguf ? std::filesystem::path(folder) : std::filesystem::path(folder) / name;
    if (!std::filesystem::exists(path)) continue;
    const nlohmann::json json = gguf ? nlohmann::json(read_model_config(folder))
                                     : nlohmann::json::parse(checkpoints::read_file(path), nullptr, false);
    if (!json.is_object() || !json.contains("eos_token_id") || json.at("eos_token_id").is_null()) continue;
    const auto& found = json.at("eos_token_id");
    const auto is_id = [](const nlohmann::json& id) {
      return id.is_number_integer() && id >= 0 && id <= std::numeric_limits<int32_t>::max();
    };
    if (is_id(found)) return {found.get<int32_t>()};
    if (found.is_array() && std::all_of(found.begin(), found.end(), is_id)) return found.get<std::vector<int32_t>>();
    throw std::runtime_error(
        fmt::format("{}: eos_token_id: found {}, expected an id or a list of ids", path.string(), found.dump()));
  }
  return {};
}

void check(const SamplingOptions& options) {
  auto refuse = [](const char* key, double found, const char* expected) {
    throw std::invalid_argument(fmt::format("{}: found {}, expected {}", key, found, expected));
  };
  if (options.max_tokens < 1) refuse("max-tokens", options.max_tokens, "at least 1");
  if (options.min_tokens < 0 || options.min_tokens > options.max_tokens)
    refuse("min-tokens", options.min_tokens, "0 to max-tokens");
  if (!(options.temperature >= 0)) refuse("temperature", options.temperature, "0 (greedy) or more");
  if (options.top_k < 0) refuse("top-k", options.top_k, "0 (off) or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) refuse("top-p", options.top_p, "above 0, at most 1");
  if (!(options.min_p >= 0 && options.min_p < 1)) refuse("min-p", options.min_p, "0 (off) to below 1");
  if (!options.draft.empty() && options.draft != "mtp")
    throw std::invalid_argument(fmt::format("draft: found '{}', expected mtp", options.draft));
}

std::pair<int32_t, float> sample_token(const float* logits, int64_t vocabulary, const SamplingOptions& options,
                                       double uniform) {
  const double temperature = options.temperature > 0 ? options.temperature : 1.0;
  const float largest = largest_of(logits, vocabulary);
  if (options.temperature == 0) {
    const int64_t first = std::find(logits, logits + vocabulary, largest) - logits;
    return {static_cast<int32_t>(first < vocabulary ? first : 0),  // NOTE: no logit is a number where there is none
            static_cast<float>(-std::log(masses(logits, vocabulary, largest, 1.0, nullptr)))};
  }
  std::vector<double> mass(vocabulary);
  const double total = masses(logits, vocabulary, largest, 1 / temperature, mass.data());
  auto drawn = [&](int64_t id) {
    const double score = (static_cast<double>(logits[id]) - largest) / temperature;
    return std::pair{static_cast<int32_t>(id), static_cast<float>(score - std::log(total))};
  };

  const bool by_rank = options.top_k > 0 && options.top_k < vocabulary;
  if (!by_rank && options.top_p == 1 && options.min_p == 0) {
    double left = uniform * total;
    int64_t id = 0, last = 0;  // last: the last one of any mass, for what rounding leaves over
    for (; id < vocabulary && left >= mass[id]; ++id) {
      left -= mass[id];
      if (mass[id] > 0) last = id;
    }
    return drawn(id < vocabulary ? id : last);
  }

  // Candidates from the likeliest down; equal ones by the lower id. The likeliest has mass 1.
  std::vector<int32_t> order;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (mass[i] >= options.min_p) order.push_back(static_cast<int32_t>(i));
  }
  const auto likelier = [&](int32_t a, int32_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; };
  if (by_rank && options.top_k < static_cast<int64_t>(order.size())) {
    std::nth_element(order.begin(), order.begin() + options.top_k, order.end(), likelier);
    order.resize(options.top_k);
  }
  if (order.empty()) return drawn(0);  // no logit is a number
  double kept = 0;
  for (const int32_t id : order) kept += mass[id];
  // The heap gives them in order, and only as many as are asked for.
  const auto less_likely = [&](int32_t a, int32_t b) { return likelier(b, a); };
  auto rest = order.end();
  const auto next = [&] {
    std::pop_heap(order.begin(), rest, less_likely);
    return *--rest;
  };
  std::make_heap(order.begin(), rest, less_likely);
  std::vector<int32_t> nucleus;
  if (options.top_p < 1) {
    double reached = 0;
    while (rest != order.begin() && (nucleus.empty() || reached < options.top_p * kept)) {
      nucleus.push_back(next());
      reached += mass[nucleus.back()];
    }
    kept = reached;
  }
  double left = uniform * kept;
  for (size_t i = 0;; ++i) {
    const int32_t id = i < nucleus.size() ? nucleus[i] : next();
    const bool is_last = options.top_p < 1 ? i + 1 == nucleus.size() : rest == order.begin();
    if (is_last || left < mass[id]) return drawn(id);
    left -= mass[id];
  }
}

at::Tensor Generator::forward(const std::vector<int32_t>& ids, models::SequenceCache& cache) const {
  const auto rows = static_cast<int64_t>(ids.size());
  models::Pass pass{.batch = 1, .length = rows};
  pass.positions = at::arange(cache.length, cache.length + rows, at::kInt);
  pass.cache = &cache;
  at::Tensor input = at::empty({rows}, at::kInt);
  std::copy(ids.begin(), ids.end(), input.data_ptr<int32_t>());
  return model_.hidden(input, pass);
}

std::pair<int32_t, float> sample_token(const float* logits, int64_t vocabulary, const SamplingOptions& options,
                                       double uniform, std::span<const int32_t> barred) {
  if (barred.empty()) return sample_token(logits, vocabulary, options, uniform);
  std::vector<float> left(logits, logits + vocabulary);
  for (const int32_t id : barred) {
    if (id >= 0 && id < vocabulary) left[id] = -std::numeric_limits<float>::infinity();
  }
  const int32_t id = sample_token(left.data(), vocabulary, options, uniform).first;
  const double temperature = options.temperature > 0 ? options.temperature : 1.0;
  const float largest = largest_of(logits, vocabulary);
  const double score = (static_cast<double>(logits[id]) - largest) / temperature;
  return {id, static_cast<float>(score - std::log(masses(logits, vocabulary, largest, 1 / temperature, nullptr)))};
}

std::vector<int32_t> ending_ids(const data::Tokenizer& tokenizer, const SamplingOptions& options) {
  if (!options.stop_at_eos) return {};
  std::vector<int32_t> ids = options.end_ids;
  if (tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
  return ids;
}

Generation Generator::run(const std::vector<int32_t>& prompt, const SamplingOptions& options,
                          const std::function<void(std::string_view)>& on_text) const {
  check(options);
  const int64_t room = model_.config().max_position_embeddings - static_cast<int64_t>(prompt.size());
  if (prompt.empty()) throw std::invalid_argument("the prompt is empty, and the tokenizer has no token to begin with");
  if (room < 1) {
    throw std::invalid_argument(
        fmt::format("the prompt has {} tokens; the model's context of {} leaves no room for an answer", prompt.size(),
                    model_.config().max_position_embeddings));
  }
  for (const int32_t id : prompt) {
    if (id < 0 || id >= model_.config().vocab_size)
      throw std::invalid_argument(
          fmt::format("prompt: id {} lies outside the model's vocabulary of {}", id, model_.config().vocab_size));
  }
  at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView plain;  // a token takes hundreds of views that nobody differentiates
  const int64_t budget = std::min(options.max_tokens, room);
  const int64_t capacity = static_cast<int64_t>(prompt.size()) + budget;
  models::SequenceCache cache = model_.make_cache(capacity);
  std::optional<MtpDrafter> drafter;
  if (options.draft == "mtp") drafter.emplace(model_, capacity);
  Generation result;
  TextStream text(tokenizer_, options.stop);
  const std::vector<int32_t> ends = ending_ids(tokenizer_, options);
  // The token at place `index` of the sequence.
  const auto draw = [&](const float* logits, int64_t index) {
    const Philox draws{options.seed, Purpose::sample, static_cast<uint64_t>(index)};
    const bool may_end = index - static_cast<int64_t>(prompt.size()) >= options.min_tokens;
    return sample_token(logits, model_.config().vocab_size, options, draws.uniform(0),
                        may_end ? std::span<const int32_t>() : ends);
  };
  // Takes a token in; why the text ends with it, or "".
  const auto take = [&](int32_t id, float logprob) -> std::string {
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) return "eos";
    result.ids.push_back(id);
    result.logprobs.push_back(logprob);
    text.push(id);
    if (on_text) {
      if (const std::string piece = text.take(); !piece.empty()) on_text(piece);
    }
    if (text.stopped()) return "stop";
    return static_cast<int64_t>(result.ids.size()) == budget ? "length" : "";
  };

  std::vector<int32_t> known = prompt;
  while (result.finish_reason.empty()) {
    // The ids that the cache has not seen, and what may follow them.
    const std::vector<int32_t> fresh(known.begin() + cache.length, known.end());
    std::vector<int32_t> drafts;
    if (drafter && cache.length > 0) {
      const int64_t left = budget - static_cast<int64_t>(result.ids.size());
      drafts = drafter->propose(known, left - 1,
                                [&](const float* logits, int64_t index) { return draw(logits, index).first; });
      result.drafted += static_cast<int64_t>(drafts.size());
    }
    const StatesBefore before(drafts.empty() ? models::SequenceCache{} : cache);
    std::vector<int32_t> rows = fresh;
    rows.insert(rows.end(), drafts.begin(), drafts.end());
    at::Tensor hidden = forward(rows, cache);
    const int64_t decided = static_cast<int64_t>(drafts.size()) + 1;
    const at::Tensor logits =
        model_.logits(hidden.narrow(0, hidden.size(0) - decided, decided), {}).to(at::kFloat).cpu().contiguous();
    // As many rows count as there are drafts that stood before them.
    int64_t stood = 0;
    while (true) {
      const auto [id, logprob] =
          draw(logits.const_data_ptr<float>() + stood * logits.size(1), static_cast<int64_t>(known.size()));
      known.push_back(id);
      const bool as_drafted = stood + 1 < decided && drafts[stood] == id;
      result.accepted += as_drafted;
      result.finish_reason = take(id, logprob);
      if (!as_drafted || !result.finish_reason.empty()) break;
      ++stood;
    }
    if (!result.finish_reason.empty()) break;
    const int64_t kept = static_cast<int64_t>(fresh.size()) + stood;
    if (kept < hidden.size(0)) {
      if (before.any()) {
        before.restore(cache);
        hidden = forward({rows.begin(), rows.begin() + kept}, cache);
      } else {
        cache.length -= hidden.size(0) - kept;
      }
    }
    if (drafter) drafter->saw(hidden.narrow(0, 0, kept));
  }
  const std::string rest = text.finish();
  if (on_text && !rest.empty()) on_text(rest);
  result.text = text.text();
  return result;
}

}  // namespace cairn
