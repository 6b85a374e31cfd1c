#include "trainer/objectives/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/rl/statistics.h"
#include "trainer/rl/tasks/task.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

rollout::EngineOptions engine_options(const config::RolloutOptions& from, const StepSettings& settings) {
  rollout::EngineOptions to = {};
  to.page_size = from.page_size, to.max_batch = from.max_batch, to.cache_mib = from.cache_mib;
  to.exact = from.exact;
  to.overflow = from.overflow == "truncate" ? rollout::Overflow::truncate : rollout::Overflow::error;
  to.like.products = settings.products, to.like.reference = settings.reference, to.like.aten = settings.aten;
  to.like.indexer = settings.indexer, to.like.indexer.train = false;
  return to;
}

bool truncated(const rollout::Sample& sample) { return sample.finish_reason == "length"; }

}  // namespace

PolicyObjective::PolicyObjective(const config::RunConfig& config, TokenizerPtr tokenizer,
                                 const models::DecoderConfig& decoder)
    : config_(config), tokenizer_(std::move(tokenizer)) {
  const auto refused = [&](const char* section, const std::string& why) { config_.fail(section, why); };
  try {
    rl::check(config_.rl.policy, config_.rl.advantage);
  } catch (const std::invalid_argument& error) {
    refused("rl", error.what());
  }
  // What a loss or an estimator needs beyond the samples of the step.
  if (config_.rl.policy.beta != 0)
    refused("rl.beta",
            fmt::format("found {}, expected 0: a reference policy is not there yet", config_.rl.policy.beta));
  if (config_.rl.policy.use_adaptive_entropy)
    refused("rl.use_adaptive_entropy", "found true, expected false: it is not there yet");
  for (const char* name : {"remax", "gae"})
    if (config_.rl.advantage.advantage_estimator == name)
      refused("rl.advantage_estimator", fmt::format("found '{}', which is not there yet", name));
  if (config_.task.chat)
    refused("task.chat", "found true, expected false: prompts by a chat template are not there yet");
  try {
    task_ = rl::make_task(config_.task);
  } catch (const std::invalid_argument& error) {
    refused("task", error.what());
  }
  try {
    rewards_ = std::make_unique<rl::RewardSet>(
        config_.rewards, config_.rl.advantage.reward_weights,
        rl::RewardContext{.max_completion_length = config_.rl.policy.max_completion_length});
  } catch (const std::invalid_argument& error) {
    refused("rewards", error.what());
  }
  if (config_.rl.policy.max_completion_length >= decoder.max_position_embeddings)
    refused("rl.max_completion_length",
            fmt::format("found {}, expected less than the model's context ({})",
                        config_.rl.policy.max_completion_length, decoder.max_position_embeddings));
  const Json eos = decoder.source.value("eos_token_id", Json());
  if (eos.is_number_integer()) end_ids_ = {eos.get<int32_t>()};
  if (eos.is_array()) end_ids_ = eos.get<std::vector<int32_t>>();
}

std::vector<int32_t> PolicyObjective::encode(const rl::Problem& problem) const {
  std::vector<int32_t> ids = tokenizer_->encode(problem.prompt, true);
  if (!ids.empty() && tokenizer_->eos_id() == ids.back()) ids.pop_back();
  return ids;
}

PolicyObjective::Sampled PolicyObjective::sample(State& state, const StepSettings& settings, rl::Side side,
                                                 int64_t first, int64_t problems, int64_t each, double temperature,
                                                 int64_t step) {
  Sampled made{.each = each};
  std::vector<rollout::Request> requests;
  for (int64_t i = 0; i < problems; ++i) {
    made.problems.push_back(
        task_->problem(side, config_.seed.data, rl::drawn_index(*task_, side, config_.seed.data, first + i)));
    made.prompts.push_back(encode(made.problems.back()));
    requests.push_back({.prompt = made.prompts.back(), .prompt_index = i, .samples = each});
  }
  SamplingOptions sampling{.max_tokens = config_.rl.policy.max_completion_length,
                           .min_tokens = config_.rl.min_completion_length,
                           .temperature = temperature,
                           .top_k = config_.rl.top_k,
                           .top_p = config_.rl.top_p,
                           .min_p = config_.rl.min_p,
                           .seed = config_.seed.sample,
                           .stop = config_.rl.stop,
                           .end_ids = end_ids_};
  // Pages are kept from step to step; a model without them may be asked otherwise by the next stage.
  if (!engine_ || !state.model().pageable())
    engine_ = std::make_unique<rollout::Engine>(state.model(), *tokenizer_, engine_options(config_.rollout, settings));
  made.samples = engine_->run(requests, sampling, static_cast<uint64_t>(step));
  std::vector<rl::Sample> views;
  for (size_t i = 0; i < made.samples.size(); ++i) {
    views.push_back({.problem = &made.problems[i / each],
                     .completion = made.samples[i].text,
                     .ids = made.samples[i].ids,
                     .truncated = truncated(made.samples[i])});
  }
  made.judgement = rewards_->judge(views);
  return made;
}

StepData PolicyObjective::step(State& state, int64_t n, const StepSettings& settings) {
  const auto& options = config_.rl;
  const int64_t each = options.advantage.num_generations, problems = settings.batch / each, B = settings.batch;
  tally_ = {};
  at_hand_ = sample(state, settings, rl::Side::train, (n - 1) * problems, problems, each, options.temperature, n);

  int64_t C = 1;
  length_ = 0;
  for (int64_t b = 0; b < B; ++b) {
    const auto drawn = static_cast<int64_t>(at_hand_.samples[b].ids.size());
    C = std::max(C, drawn);
    length_ = std::max(length_, static_cast<int64_t>(at_hand_.prompt_of(b).size()) + drawn - 1);
  }
  length_ = (std::max<int64_t>(length_, 1) + 7) / 8 * 8;
  mask_ = at::zeros({B, C}, at::kBool), truncated_ = at::zeros({B}, at::kBool);
  rollout_logprobs_ = at::zeros({B, C});
  const auto F = static_cast<int64_t>(rewards_->size());
  const at::Tensor rewards = at::empty({B, F});
  for (int64_t b = 0; b < B; ++b) {
    const rollout::Sample& sample = at_hand_.samples[b];
    for (size_t t = 0; t < sample.ids.size(); ++t) {
      mask_.data_ptr<bool>()[b * C + t] = true;
      rollout_logprobs_.data_ptr<float>()[b * C + t] = sample.logprobs[t];
    }
    truncated_.data_ptr<bool>()[b] = truncated(sample);
    for (int64_t f = 0; f < F; ++f)
      rewards.data_ptr<float>()[b * F + f] = static_cast<float>(at_hand_.judgement.verdicts[f][b].reward);
  }
  std::vector<std::string> names;
  for (int64_t f = 0; f < F; ++f) names.push_back(rewards_->reward(f).label());
  advantages_ = rl::advantages({.rewards = rewards, .mask = mask_, .old_logprobs = rollout_logprobs_, .names = names},
                               options.policy, options.advantage);
  tally_.add(advantages_.metrics);
  measure_lengths();

  StepData data{.context = length_, .rows_count = B * length_};
  data.rows = [this](int64_t first, int64_t count) { return rows(first, count); };
  data.loss = [this](models::Decoder& model, const ModelInput& input, int64_t first, int64_t count) {
    return loss(model, input, first, count);
  };
  const data::Batch whole = rows(0, B);
  data.targets = targets_ = std::max<int64_t>(whole.target_count(), 1);
  for (size_t i = 0; i < whole.segments.size(); ++i)
    data.queries += i % length_ != 0 && whole.segments[i] == whole.segments[i - 1];

  at::Tensor entropies;
  double threshold = 0;
  if (options.policy.top_entropy_quantile < 1) {
    // Which tokens are learned from hangs on the entropies of all of them: the batch goes forward once before.
    entropies = at::zeros({B, C});
    for (int64_t first = 0; first < B; first += settings.micro_batch) {
      const int64_t count = std::min(settings.micro_batch, B - first);
      ModelInput input = model_input(rows(first, count));
      input.pass.products = settings.products, input.pass.reference = settings.reference,
      input.pass.aten = settings.aten;
      const auto scores = state.model().score(input.ids, input.targets, input.pass,
                                              {.temperature = options.temperature, .entropy = true});
      const at::Tensor found = scores.entropy.cpu().to(at::kFloat).contiguous();
      for (int64_t b = first; b < first + count; ++b) {
        const auto prompt = static_cast<int64_t>(at_hand_.prompt_of(b).size());
        const auto drawn = static_cast<int64_t>(at_hand_.samples[b].ids.size());
        std::copy_n(found.const_data_ptr<float>() + (b - first) * length_ + prompt - 1, drawn,
                    entropies.data_ptr<float>() + b * C);
      }
    }
    threshold = rl::entropy_threshold(rl::counted_entropies(mask_, truncated_, options.policy, entropies),
                                      options.policy.top_entropy_quantile);
  }
  counts_ = rl::count(mask_, truncated_, options.policy, entropies, threshold);
  counts_.micro_batches = B / settings.micro_batch;
  return data;
}

data::Batch PolicyObjective::rows(int64_t first, int64_t count) const {
  data::Batch batch{.rows = count, .context = length_};
  const int32_t padding = std::max(tokenizer_->eos_id().value_or(0), 0);
  for (int64_t b = first; b < first + count; ++b) {
    const auto& prompt = at_hand_.prompt_of(b);
    const auto& ids = at_hand_.samples[b].ids;
    const auto P = static_cast<int64_t>(prompt.size()), L = P + static_cast<int64_t>(ids.size()) - 1;
    const auto token = [&](int64_t t) { return t < P ? prompt[t] : ids[t - P]; };
    for (int64_t t = 0; t < length_; ++t) {
      // The last token predicts nothing; every row of the padding is a segment of its own.
      batch.inputs.push_back(t < L ? token(t) : padding);
      batch.targets.push_back(t < L && t + 1 >= P ? token(t + 1) : -1);
      batch.positions.push_back(static_cast<int32_t>(t < L ? t : 0));
      batch.segments.push_back(static_cast<int32_t>(t < L ? 0 : t - L + 1));
    }
  }
  return batch;
}

models::Loss PolicyObjective::loss(models::Decoder& model, const ModelInput& input, int64_t first, int64_t count) {
  const auto& options = config_.rl;
  const int64_t C = mask_.size(1);
  const bool entropies = rl::needs_entropies(options.policy);
  // Between rows of the batch, [N], and completions, [count, C].
  const auto each = [&](auto&& visit) {
    for (int64_t b = 0; b < count; ++b) {
      const auto prompt = static_cast<int64_t>(at_hand_.prompt_of(first + b).size());
      const auto drawn = static_cast<int64_t>(at_hand_.samples[first + b].ids.size());
      if (drawn > 0) visit(b * length_ + prompt - 1, b * C, drawn);
    }
  };
  const auto completions = [&](const at::Tensor& rows) {
    const at::Tensor from = rows.cpu().to(at::kFloat).contiguous(), to = at::zeros({count, C});
    each([&](int64_t row, int64_t place, int64_t n) {
      std::copy_n(from.const_data_ptr<float>() + row, n, to.data_ptr<float>() + place);
    });
    return to;
  };
  const auto as_rows = [&](const at::Tensor& gradients) {
    const at::Tensor to = at::zeros({count * length_});
    each([&](int64_t row, int64_t place, int64_t n) {
      std::copy_n(gradients.const_data_ptr<float>() + place, n, to.data_ptr<float>() + row);
    });
    return to;
  };
  double share = 0;
  model.score(input.ids, input.targets, input.pass, {.temperature = options.temperature, .entropy = entropies},
              [&](const models::TokenScores& scores) {
                rl::PolicyBatch batch{.logprobs = completions(scores.logprobs),
                                      .rollout_logprobs = rollout_logprobs_.narrow(0, first, count).contiguous(),
                                      .mask = mask_.narrow(0, first, count).contiguous(),
                                      .advantages = advantages_.advantages.narrow(0, first, count).contiguous(),
                                      .truncated = truncated_.narrow(0, first, count).contiguous()};
                if (entropies) batch.entropies = completions(scores.entropy);
                // One update of each batch: the proximal policy is the one under training.
                batch.old_logprobs = batch.logprobs;
                const rl::PolicyOutput out = rl::policy_loss(batch, counts_, options.policy);
                share = out.loss;
                tally_.add(out.metrics);
                models::TokenScores above{as_rows(out.dlogprobs)};
                if (out.dentropies.defined()) above.entropy = as_rows(out.dentropies);
                return above;
              });
  models::Loss made;
  made.nll = share * static_cast<double>(targets_);
  return made;
}

// TRL's names.
void PolicyObjective::measure_lengths() {
  double all = 0, ended = 0, ended_sum = 0;
  double least = INFINITY, most = -INFINITY, least_ended = NAN, most_ended = NAN;
  for (const auto& sample : at_hand_.samples) {
    const auto length = static_cast<double>(sample.ids.size());
    all += length, least = std::min(least, length), most = std::max(most, length);
    if (truncated(sample)) continue;
    ended_sum += length, ++ended;
    least_ended = std::isnan(least_ended) ? length : std::min(least_ended, length);
    most_ended = std::isnan(most_ended) ? length : std::max(most_ended, length);
  }
  const auto count = static_cast<double>(at_hand_.samples.size());
  tally_.mean("completions/mean_length", all, count);
  tally_.least("completions/min_length", least);
  tally_.greatest("completions/max_length", most);
  tally_.mean("completions/mean_terminated_length", ended_sum, ended);
  tally_.least("completions/min_terminated_length", least_ended);
  tally_.greatest("completions/max_terminated_length", most_ended);
  tally_.mean("completions/clipped_ratio", count - ended, count);
}

Json PolicyObjective::metrics() const {
  Json values = Json::object();
  for (const auto& [name, value] : tally_.values()) values[name] = value;
  return values;
}

std::vector<Json> PolicyObjective::samples() const {
  std::vector<Json> lines;
  for (size_t i = 0; i < at_hand_.samples.size(); ++i) {
    const rollout::Sample& sample = at_hand_.samples[i];
    const rl::Problem& problem = at_hand_.problems[i / at_hand_.each];
    Json rewards = Json::object();
    for (size_t f = 0; f < rewards_->size(); ++f) {
      const double reward = at_hand_.judgement.verdicts[f][i].reward;
      rewards[rewards_->reward(f).label()] = std::isnan(reward) ? Json() : Json(reward);
    }
    const at::Tensor advantage = advantages_.advantages[static_cast<int64_t>(i)];
    lines.push_back({{"problem", problem.id},
                     {"sample", sample.sample_index},
                     {"prompt", problem.prompt},
                     {"completion", sample.text},
                     {"reference", problem.reference},
                     {"rewards", rewards},
                     {"reward", advantages_.rewards[static_cast<int64_t>(i)].item<float>()},
                     {"advantage", advantage.dim() == 0 ? Json(advantage.item<float>()) : Json()},
                     {"finish_reason", sample.finish_reason},
                     {"prompt_ids", at_hand_.prompt_of(i)},
                     {"ids", sample.ids},
                     {"logprobs", sample.logprobs}});
  }
  return lines;
}

Json PolicyObjective::evaluate(State& state, const StepSettings& settings, int64_t count) {
  if (const auto size = task_->size(rl::Side::evaluation)) count = std::min(count, *size);
  if (count < 1) return nullptr;
  const Sampled made = sample(state, settings, rl::Side::evaluation, 0, count, 1, 0.0, 0);
  std::vector<std::vector<double>> right;
  double reward = 0, judged = 0, tokens = 0;
  for (size_t i = 0; i < made.samples.size(); ++i) {
    const double first = made.judgement.verdicts[0][i].reward, total = made.judgement.totals[i];
    right.push_back({std::isnan(first) ? first : static_cast<double>(first >= 1)});
    if (!std::isnan(total)) reward += total, ++judged;
    tokens += static_cast<double>(made.samples[i].ids.size());
  }
  const rl::MeanEstimate accuracy = rl::accuracy(right);
  return {{"accuracy", accuracy.mean},
          {"standard_error", accuracy.standard_error},
          {"reward", judged > 0 ? Json(reward / judged) : Json()},
          {"problems", accuracy.problems},
          {"mean_length", tokens / static_cast<double>(made.samples.size())}};
}

}  // namespace cairn
