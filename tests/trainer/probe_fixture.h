// A run in memory for tests of probes: a very small model, batches drawn from (seed, n), train_step.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "models/families/family.h"
#include "tests/checkpoints/temporary.h"
#include "trainer/probes/probe.h"

namespace cairn::testing {

using nlohmann::ordered_json;

inline ordered_json tiny(const std::string& model_type, const ordered_json& changes = ordered_json::object()) {
  ordered_json json{{"model_type", model_type},     {"vocab_size", 61},       {"hidden_size", 32},
                    {"intermediate_size", 40},      {"num_hidden_layers", 2}, {"num_attention_heads", 4},
                    {"max_position_embeddings", 64}};
  if (model_type == "gpt2") {
    json = {{"model_type", "gpt2"}, {"vocab_size", 61}, {"n_embd", 32},
            {"n_layer", 2},         {"n_head", 4},      {"n_positions", 64}};
  } else if (model_type != "gpt_neox") {
    json["num_key_value_heads"] = 2;
  }
  json.update(changes);
  return json;
}

struct RunSettings {
  std::string optimizer = "adamw";
  at::ScalarType weights = at::kFloat, products = at::kFloat;
  double dropout = 0, ema = 0;
  int64_t batch = 8, micro_batch = 2, context = 16;
  int lanes = 2;
  double lr = 1e-2;
};

class TinyRun {
 public:
  explicit TinyRun(const ordered_json& model, const RunSettings& run = {})
      : world(parallel::World::join(parallel::Launch{})),
        state(models::decoder_config(model, true), run.weights, *world, run.lanes, 0),
        context(run.context) {
    state.model().parameters().initialise(5);
    // Norms and biases away from one and zero.
    auto generator = at::make_generator<at::CPUGeneratorImpl>(9);
    for (const auto& p : state.model().parameters().all()) {
      if (p.role == models::Role::norm || p.role == models::Role::bias)
        p.value().add_(at::randn(p.value().sizes(), generator).to(p.value().scalar_type()) * 0.1);
    }
    state.set_optimizer(optim::defaults(run.optimizer), run.ema);
    settings = {.batch = run.batch,
                .micro_batch = run.micro_batch,
                .lanes = run.lanes,
                .lr = run.lr,
                .dropout = run.dropout,
                .dropout_seed = 3,
                .products = run.products};
  }

  // Rows of the batch of step n.
  std::function<data::Batch(int64_t n)> draw = [this](int64_t n) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(100 + n);
    const int64_t vocabulary = state.model().config().vocab_size;
    const at::Tensor tokens =
        at::randint(0, vocabulary, {settings.batch, context + 1}, generator, at::kInt).contiguous();
    data::Batch batch{.rows = settings.batch, .context = context};
    for (int64_t row = 0; row < batch.rows; ++row) {
      const int32_t* ids = tokens.const_data_ptr<int32_t>() + row * (context + 1);
      batch.inputs.insert(batch.inputs.end(), ids, ids + context);
      batch.targets.insert(batch.targets.end(), ids + 1, ids + context + 1);
      for (int64_t t = 0; t < context; ++t) batch.positions.push_back(static_cast<int32_t>(t));
      batch.segments.insert(batch.segments.end(), context, 0);
    }
    return batch;
  };

  StepData data(int64_t n) {
    const data::Batch whole = draw(n);
    return {.context = whole.context,
            .targets = whole.target_count(),
            .rows_count = whole.rows * whole.context,
            .queries = whole.rows * (whole.context - 1),
            .rows = [whole](int64_t first, int64_t count) {
              data::Batch part{.rows = count, .context = whole.context};
              const auto cut = [&](const std::vector<int32_t>& from, std::vector<int32_t>& to) {
                to.assign(from.begin() + first * whole.context, from.begin() + (first + count) * whole.context);
              };
              cut(whole.inputs, part.inputs), cut(whole.targets, part.targets);
              cut(whole.positions, part.positions), cut(whole.segments, part.segments);
              return part;
            }};
  }

  StepResult step(StepObserver* observer = nullptr) {
    return train_step(state, data(state.step + 1), settings, observer);
  }

  // The value of a parameter, to look at or to change.
  at::Tensor weight(const std::string& name) { return state.model().parameters().at(name).value(); }

  std::unique_ptr<parallel::World> world;
  State state;
  StepSettings settings;
  int64_t context;
};

// What a folder holds of one metric: (step, name) -> values.
inline std::map<std::pair<int64_t, std::string>, std::vector<double>> measured(const std::filesystem::path& folder,
                                                                               const std::string& metric) {
  std::map<std::pair<int64_t, std::string>, std::vector<double>> all;
  for (const auto& m : read_series(folder, metric)) all[{m.step, m.name}] = m.values;
  return all;
}

// Runs `steps` steps with one probe and gives what it measured.
inline std::map<std::pair<int64_t, std::string>, std::vector<double>> probe(TinyRun& run, const std::string& name,
                                                                            int64_t steps = 1,
                                                                            ProbeOptions options = {}) {
  const checkpoints::TemporaryFolder folder;
  options.folder = folder / "probes";
  const auto probes = make_probes({name}, options);
  for (int64_t i = 0; i < steps; ++i) run.step(probes.get());
  probes->finish();
  return measured(options.folder, name);
}

}  // namespace cairn::testing
