#include "trainer/rollout/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

#include "trainer/rollout/run.h"

namespace cairn::rollout {
namespace {

void refuse(const std::string& key, int64_t found, const std::string& expected) {
  throw std::invalid_argument(fmt::format("{}: found {}, expected {}", key, found, expected));
}

}  // namespace

void check(const EngineOptions& options) {
  if (options.page_size != 16 && options.page_size != 32 && (options.page_size < 64 || options.page_size % 64 != 0))
    refuse("page_size", options.page_size, "16, 32 or a multiple of 64");
  if (options.max_batch < 1) refuse("max_batch", options.max_batch, "at least 1");
  if (options.cache_mib < 1) refuse("cache_mib", options.cache_mib, "at least 1");
  if (options.prefill_rows < 1) refuse("prefill_rows", options.prefill_rows, "at least 1");
}

Engine::Engine(const models::Decoder& model, const data::Tokenizer& tokenizer, EngineOptions options)
    : model_(model), tokenizer_(tokenizer), options_(std::move(options)) {
  check(options_);
  if (!options_.exact) return;
  const at::Tensor weights = model.parameters().flat();
  if (!weights.is_cpu() || weights.scalar_type() != at::kFloat || options_.like.products != at::kFloat ||
      options_.like.reference || options_.like.aten)
    throw std::invalid_argument("exact: rollouts have the trainer's bits in float32 with the kernels of the CPU alone");
  if (!model.pageable())
    throw std::invalid_argument(
        fmt::format("exact: a {} is decoded by other forms of its layers than those that train (latent attention, an "
                    "indexer or a recurrent state)",
                    model.config().model_type));
}

std::vector<std::shared_ptr<Group>> Engine::groups_of(std::span<const Request> requests,
                                                      const SamplingOptions& sampling, uint64_t step) const {
  constexpr int64_t kLimit = int64_t{1} << 32;
  const int64_t context = model_.config().max_position_embeddings, vocabulary = model_.config().vocab_size;
  if (step >= kLimit) throw std::invalid_argument(fmt::format("step: found {}, expected less than 2^32", step));
  std::vector<std::shared_ptr<Group>> groups;
  std::unordered_set<int64_t> seen;
  int64_t place = 0;
  for (const Request& request : requests) {
    const std::string name = fmt::format("prompt_index {}", request.prompt_index);
    const int64_t length = static_cast<int64_t>(request.prompt.size()), room = context - length;
    if (request.prompt_index < 0 || request.prompt_index >= kLimit)
      refuse("prompt_index", request.prompt_index, "0 to below 2^32");
    if (!seen.insert(request.prompt_index).second)
      throw std::invalid_argument(name + ": occurs twice; the samples of both would have the same random numbers");
    if (request.samples < 1 || request.samples >= kLimit) refuse(name + ": samples", request.samples, "at least 1");
    if (request.prompt.empty()) throw std::invalid_argument(name + ": the prompt is empty");
    for (const int32_t id : request.prompt) {
      if (id < 0 || id >= vocabulary)
        throw std::invalid_argument(
            fmt::format("{}: id {} lies outside the model's vocabulary of {}", name, id, vocabulary));
    }
    if (room < 1)
      throw std::invalid_argument(
          fmt::format("{}: the prompt has {} tokens; the model's context of {} leaves no room for a completion", name,
                      length, context));
    if (room < sampling.max_tokens && options_.overflow == Overflow::error)
      throw std::invalid_argument(
          fmt::format("{}: {} tokens and a completion of {} exceed the model's context of {} (overflow: truncate ends "
                      "completions there)",
                      name, length, sampling.max_tokens, context));
    auto group = std::make_shared<Group>();
    group->request = &request, group->place = place;
    group->budget = std::min(sampling.max_tokens, room);
    place += request.samples;
    groups.push_back(std::move(group));
  }
  return groups;
}

models::Pass Engine::pass_of(int64_t batch, int64_t length) const {
  models::Pass pass{.batch = batch, .length = length};
  pass.reference = options_.like.reference, pass.aten = options_.like.aten, pass.products = options_.like.products;
  pass.indexer = options_.like.indexer;
  pass.indexer.train = false;
  return pass;
}

// As many pages as the run can use, within the bound; a pool that is large enough is kept.
void Engine::make_pages(const std::vector<std::shared_ptr<Group>>& groups) {
  int64_t longest = 0, wanted = 0;
  for (const auto& group : groups) {
    const int64_t rows = group->length() + group->budget - 1;
    const int64_t pages = (rows + options_.page_size - 1) / options_.page_size + 1;
    longest = std::max(longest, pages), wanted += pages * (group->request->samples + 1);
  }
  wanted = std::min(wanted, longest * (options_.max_batch + 1));
  int64_t bytes = 0;  // of a page in all blocks
  for (const auto& layer : model_.make_pages(1, options_.page_size))
    bytes += layer.keys.nbytes() + layer.values.nbytes();
  const int64_t bound = (options_.cache_mib << 20) / bytes;
  if (bound < 1)
    throw std::invalid_argument(
        fmt::format("cache_mib: found {}, expected at least the {} bytes of one page", options_.cache_mib, bytes));
  const int64_t count = std::min(bound, wanted);
  cache_.capacity = model_.config().max_position_embeddings;
  if (cache_.layers.empty() || cache_.layers[0].keys.size(0) < count)
    cache_.layers.clear(), cache_.layers = model_.make_pages(count, options_.page_size);
  stats_.pages = cache_.layers[0].keys.size(0);
}

// One token for each sequence from its row of logits and, with `exact`, of hidden [n, C]; those that are done leave.
void Engine::advance(const std::vector<Sequence*>& sequences, const std::vector<const float*>& logits,
                     const at::Tensor& hidden, Scheduler& scheduler, Run& run) {
  std::vector<Draw> draws;
  for (size_t i = 0; i < sequences.size(); ++i)
    draws.push_back(
        run.draw_of(*sequences[i]->group, sequences[i]->sample, sequences[i]->completion.size(), logits[i]));
  draw_all(draws, model_.config().vocab_size, run.sampling, run.ends);
  if (options_.exact) {
    const at::Tensor targets = at::empty({static_cast<int64_t>(draws.size())}, at::kInt);
    for (size_t i = 0; i < draws.size(); ++i) targets.data_ptr<int32_t>()[i] = draws[i].id;
    const double temperature = run.sampling.temperature > 0 ? run.sampling.temperature : 1;
    const at::Tensor logprobs = model_.log_probabilities(hidden, targets, pass_of(1, hidden.size(0)), temperature);
    for (size_t i = 0; i < draws.size(); ++i) draws[i].logprob = logprobs.const_data_ptr<float>()[i];
  }
  stats_.tokens += static_cast<int64_t>(draws.size());
  run.progress.tokens = stats_.tokens;
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = *sequences[i];
    if (!sequence.completion.push(draws[i].id, draws[i].logprob)) continue;
    run.finished(*sequence.group, sequence.sample, sequence.completion, stats_);
    scheduler.leave(&sequence);
  }
}

void Engine::decode(Scheduler& scheduler, Run& run) {
  std::vector<Sequence*> sequences;
  for (const auto& sequence : scheduler.running()) sequences.push_back(sequence.get());
  const int64_t B = static_cast<int64_t>(sequences.size()), N = padded_rows(B);
  const at::Tensor ids = at::zeros({N}, at::kInt), positions = at::zeros({N}, at::kInt),
                   lengths = at::zeros({N}, at::kInt), slots = at::full({N}, -1, at::kLong);
  std::vector<std::pair<int32_t, int32_t>> copied;
  int64_t most = 1;
  for (int64_t i = 0; i < B; ++i) {
    Sequence& sequence = *sequences[i];
    ids.data_ptr<int32_t>()[i] = sequence.completion.last();
    positions.data_ptr<int32_t>()[i] = static_cast<int32_t>(sequence.length);
    slots.data_ptr<int64_t>()[i] = scheduler.next_slot(sequence, copied);
    lengths.data_ptr<int32_t>()[i] = static_cast<int32_t>(++sequence.length);
    most = std::max<int64_t>(most, sequence.pages.size());
  }
  for (const auto& [from, to] : copied) {
    for (const auto& layer : cache_.layers) {
      layer.keys.select(0, to).copy_(layer.keys.select(0, from));
      layer.values.select(0, to).copy_(layer.values.select(0, from));
    }
  }
  const at::Tensor table = at::full({N, most}, -1, at::kInt);
  for (int64_t i = 0; i < B; ++i)
    std::copy(sequences[i]->pages.begin(), sequences[i]->pages.end(), table.data_ptr<int32_t>() + i * most);

  models::Pass pass = pass_of(N, 1);
  pass.positions = positions;
  cache_.starts = false, cache_.slots = slots, cache_.table = table, cache_.lengths = lengths;
  pass.paged = &cache_;
  const at::Tensor hidden = model_.hidden(ids, pass);  // [N, C]
  const at::Tensor logits = model_.logits(hidden, pass).to(at::kFloat).cpu().contiguous();
  std::vector<const float*> rows;
  for (int64_t i = 0; i < B; ++i) rows.push_back(logits.const_data_ptr<float>() + i * logits.size(1));
  ++stats_.steps;
  advance(sequences, rows, hidden.narrow(0, 0, B), scheduler, run);
}

std::vector<Sample> Engine::run(std::span<const Request> requests, const SamplingOptions& sampling, uint64_t step,
                                const std::function<void(const Progress&)>& on_progress) {
  cairn::check(sampling);
  if (!sampling.draft.empty())
    throw std::invalid_argument(
        fmt::format("draft: found '{}', expected none: rollouts are drawn without drafts", sampling.draft));
  at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView plain;  // a token takes hundreds of views that nobody differentiates
  stats_ = {};
  Run run{sampling, step, on_progress, groups_of(requests, sampling, step), ending_ids(tokenizer_, sampling), {}, {}};
  if (run.groups.empty()) return {};
  run.progress.samples = run.groups.back()->place + run.groups.back()->request->samples;
  run.samples.resize(run.progress.samples);
  if (!model_.pageable()) {
    one_by_one(run);
    return std::move(run.samples);
  }
  make_pages(run.groups);
  PagePool pool(stats_.pages);
  Scheduler scheduler(run.groups, pool, options_.page_size, options_.max_batch, options_.prefill_rows,
                      [&](std::shared_ptr<Group> group, int64_t sample) {
                        const int64_t budget = group->budget;
                        return Sequence{.group = std::move(group),
                                        .sample = sample,
                                        .completion = Completion(tokenizer_, sampling.stop, run.ends, budget)};
                      });
  while (!scheduler.done()) {
    const Scheduler::Entry entered = scheduler.enter();
    if (entered.sequences.empty() && scheduler.running().empty())
      throw std::logic_error("rollout: nobody runs and nobody enters");
    stats_.most_running = std::max<int64_t>(stats_.most_running, scheduler.running().size());
    compute_prompts(entered.prompts);
    if (!entered.sequences.empty()) {
      std::vector<const float*> logits;
      std::vector<at::Tensor> hidden;
      for (const Sequence* sequence : entered.sequences) {
        logits.push_back(sequence->group->logits.const_data_ptr<float>());
        hidden.push_back(sequence->group->hidden);
      }
      advance(entered.sequences, logits, at::cat(hidden), scheduler, run);
    }
    if (!scheduler.running().empty()) decode(scheduler, run);
    stats_.most_pages = std::max(stats_.most_pages, pool.used());
    run.report();
  }
  stats_.waited = scheduler.waited();
  return std::move(run.samples);
}

}  // namespace cairn::rollout
