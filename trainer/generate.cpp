#include "trainer/generate.h"

#include <numeric>

#include "models/random.h"

namespace cairn {

void check(const SamplingOptions& options) {
  auto refuse = [](const char* key, double found, const char* expected) {
    throw std::invalid_argument(fmt::format("{}: found {}, expected {}", key, found, expected));
  };
  if (options.max_tokens < 1) refuse("max-tokens", options.max_tokens, "at least 1");
  if (!(options.temperature >= 0)) refuse("temperature", options.temperature, "0 (greedy) or more");
  if (options.top_k < 0) refuse("top-k", options.top_k, "0 (off) or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) refuse("top-p", options.top_p, "above 0, at most 1");
  if (!(options.min_p >= 0 && options.min_p < 1)) refuse("min-p", options.min_p, "0 (off) to below 1");
}

std::pair<int32_t, float> sample_token(const float* logits, int64_t vocabulary, const SamplingOptions& options,
                                       double uniform) {
  const double temperature = options.temperature > 0 ? options.temperature : 1.0;
  const float largest = *std::max_element(logits, logits + vocabulary);
  double total = 0;
  std::vector<double> mass(vocabulary);  // exp((logit - largest) / temperature)
  for (int64_t i = 0; i < vocabulary; ++i)
    total += mass[i] = std::exp((static_cast<double>(logits[i]) - largest) / temperature);
  auto logprob = [&](int64_t id) {
    return static_cast<float>((static_cast<double>(logits[id]) - largest) / temperature - std::log(total));
  };
  if (options.temperature == 0) {
    const auto id = static_cast<int32_t>(std::max_element(logits, logits + vocabulary) - logits);
    return {id, logprob(id)};
  }

  // Candidates from the likeliest down; equal ones by the lower id.
  std::vector<int32_t> order(vocabulary);
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](int32_t a, int32_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; };
  size_t kept = vocabulary;
  if (options.top_k > 0 && options.top_k < vocabulary) {
    kept = options.top_k;
    std::partial_sort(order.begin(), order.begin() + kept, order.end(), likelier);
  } else if (options.top_p < 1 || options.min_p > 0) {
    std::sort(order.begin(), order.end(), likelier);
  }
  if (options.min_p > 0) {
    while (kept > 1 && mass[order[kept - 1]] < options.min_p * mass[order[0]]) --kept;
  }
  double kept_mass = 0;
  for (size_t i = 0; i < kept; ++i) kept_mass += mass[order[i]];
  if (options.top_p < 1) {
    double reached = 0;
    size_t i = 0;
    while (i < kept && reached < options.top_p * kept_mass) reached += mass[order[i++]];
    kept = std::max<size_t>(1, i);
    kept_mass = reached;
  }
  double left = uniform * kept_mass;
  size_t chosen = 0;
  while (chosen + 1 < kept && left >= mass[order[chosen]]) left -= mass[order[chosen++]];
  return {order[chosen], logprob(order[chosen])};
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
  const int64_t budget = std::min(options.max_tokens, room);
  models::KeyValueCache cache = model_.make_cache(static_cast<int64_t>(prompt.size()) + budget);
  Generation result;
  result.finish_reason = "length";
  std::vector<int32_t> fresh = prompt;  // ids that the cache has not seen
  size_t shown = 0;
  for (int64_t i = 0; i < budget; ++i) {
    const int64_t rows = fresh.size();
    at::Tensor ids = at::empty({rows}, at::kInt), positions = at::empty({rows}, at::kInt);
    for (int64_t r = 0; r < rows; ++r) {
      ids.data_ptr<int32_t>()[r] = fresh[r];
      positions.data_ptr<int32_t>()[r] = static_cast<int32_t>(cache.length + r);
    }
    models::Pass pass{.batch = 1, .length = rows, .positions = positions};
    pass.cache = &cache;
    const at::Tensor hidden = model_.hidden(ids, pass);
    const at::Tensor logits = model_.logits(hidden.narrow(0, rows - 1, 1), pass).to(at::kFloat).contiguous();
    const Philox draws{options.seed, Purpose::sample, static_cast<uint64_t>(prompt.size() + i)};
    const auto [id, logprob] = sample_token(logits.data_ptr<float>(), logits.size(1), options, draws.uniform(0));
    if (options.stop_at_eos && tokenizer_.eos_id() && id == *tokenizer_.eos_id()) {
      result.finish_reason = "eos";
      break;
    }
    result.ids.push_back(id);
    result.logprobs.push_back(logprob);
    fresh = {id};
    result.text = tokenizer_.decode(result.ids);
    size_t cut = std::string::npos;
    for (const std::string& stop : options.stop) {
      if (!stop.empty()) cut = std::min(cut, result.text.find(stop));
    }
    if (cut != std::string::npos) {
      result.text.resize(cut);
      result.finish_reason = "stop";
    }
    // A character that is not complete yet shows as U+FFFD at the end: it is held back.
    size_t ready = result.text.size();
    if (cut == std::string::npos && result.text.ends_with("\xEF\xBF\xBD")) ready -= 3;
    if (on_text && ready > shown) {
      on_text(std::string_view(result.text).substr(shown, ready - shown));
      shown = ready;
    }
    if (cut != std::string::npos) break;
  }
  if (on_text && result.text.size() > shown) on_text(std::string_view(result.text).substr(shown));
  return result;
}

}  // namespace cairn
