#include <fmt/format.h>

#include <algorithm>

#include "trainer/config/reader.h"
#include "trainer/config/resolve.h"
#include "trainer/config/visit.h"
#include "trainer/config/writer.h"

namespace cairn::config {
namespace {

// `index_topk: K` and `train: indexer` are short for indexer.topk and indexer.train.
const std::vector<std::string> kStageKeys = {"name",    "steps",      "data",    "optim",
                                             "indexer", "index_topk", "experts", "train"};

// Keys of data, optim and train that hold for the whole run, and why.
const std::vector<std::pair<std::string, std::string>> kFixed = {
    {"data.tokenizer", "the ids of the tokens would change their meaning"},
    {"data.cache", "one cache serves the run"},
    {"data.validation", "the validation sets stay comparable"},
    {"data.validation_fraction", "held-out documents would be trained on"},
    {"optim.name", "the optimizer's state would not fit"},
    {"optim.ema", "the averaged weights are state of the whole run"},
    {"train.steps", "it is the `steps` of the stage"},
    {"train.tokens", "a stage ends by its `steps`"},
    {"train.epochs", "a stage ends by its `steps`"},
    {"train.minutes", "it holds for the run"},
    {"train.threads", "it holds for the run"},
    {"train.precision", "the state would not fit"},
    {"train.device", "it holds for the run"},
    {"train.kernels", "it holds for the run"},
};

void refuse_fixed(const Tree& tree, const std::string& prefix) {
  for (const auto& entry : tree.entries) {
    if (std::find(kStageKeys.begin(), kStageKeys.end(), entry.key) == kStageKeys.end()) {
      const auto& keys = all_keys();
      const bool ours = std::find(keys.begin(), keys.end(), entry.key) != keys.end();
      fail(entry.where, prefix + entry.key,
           ours ? fmt::format("found a change of {0}, expected one of {1}: {0} stays the same inside a run", entry.key,
                              fmt::join(kStageKeys, ", "))
                : fmt::format("found an unknown key, expected one of {}{}", fmt::join(kStageKeys, ", "),
                              did_you_mean(entry.key, kStageKeys)));
    }
    for (const auto& inner : entry.value.entries)
      for (const auto& [key, reason] : kFixed)
        if (key == entry.key + "." + inner.key)
          fail(inner.where, prefix + key, fmt::format("found a change inside a run, expected none: {}", reason));
  }
}

// Of `full` what `tree` names; lists whole.
Json prune(const Json& full, const Tree& tree) {
  if (!full.is_object() || !tree.is_map()) return full;
  Json part = Json::object();
  for (const auto& [key, value] : full.items())
    if (const auto* entry = tree.find(key)) part[key] = prune(value, entry->value);
  return part;
}

template <class S>
void lay_over(const Tree& tree, const std::string& path, const char* name, S& options) {
  if (const auto* entry = tree.find(name)) {
    Reader reader(entry->value, path + name);
    visit(reader, options);
    reader.finish();
  }
}

// What the run gave before `auto` was resolved: a stage with another batch chooses anew.
Stage read_stage(const Tree& tree, const std::string& prefix, const RunConfig& run, const TrainOptions& unresolved) {
  if (!tree.is_map())
    fail(tree.where, prefix.substr(0, prefix.size() - 1),
         fmt::format("found {}, expected a section with `steps`", tree.found()));
  refuse_fixed(tree, prefix);
  Stage stage{
      .data = run.data, .optim = run.optim, .indexer = run.indexer, .experts = run.experts, .train = unresolved};
  if (const auto* name = tree.find("name")) read_value(name->value, prefix + "name", any(), stage.name);
  const auto* steps = tree.find("steps");
  if (!steps) fail(tree.where, prefix + "steps", "found nothing, expected the number of steps of the stage");
  read_value(steps->value, prefix + "steps", at_least(1), stage.steps);
  if (!stage.steps) fail(steps->where, prefix + "steps", "found nothing, expected an integer of at least 1");
  lay_over(tree, prefix, "data", stage.data);
  lay_over(tree, prefix, "optim", stage.optim);
  lay_over(tree, prefix, "indexer", stage.indexer);
  lay_over(tree, prefix, "experts", stage.experts);
  if (const auto* topk = tree.find("index_topk"))
    read_value(topk->value, prefix + "index_topk", at_least(1), stage.indexer.topk);
  if (const auto* train = tree.find("train"); train && train->value.is_scalar())
    read_value(train->value, prefix + "train", one_of({"auto", "all", "model", "indexer"}), stage.indexer.train);
  else
    lay_over(tree, prefix, "train", stage.train);
  if (const auto* data = tree.find("data"); data && data->value.find("train")) resolve_paths(run, prefix, stage.data);
  resolve_batch(run, prefix, stage.train);
  return stage;
}

Json overrides_of(Stage& stage, const Tree& tree) {
  const Json full = {{"data", Writer::write(stage.data)},
                     {"optim", Writer::write(stage.optim)},
                     {"indexer", Writer::write(stage.indexer)},
                     {"experts", Writer::write(stage.experts)},
                     {"train", Writer::write(stage.train)}};
  Json part = prune(full, tree);
  if (const auto* train = tree.find("train"); train && train->value.is_scalar()) {
    part.erase("train");
    part["indexer"]["train"] = full["indexer"]["train"];
  }
  if (tree.find("index_topk")) part["indexer"]["topk"] = full["indexer"]["topk"];
  // What `auto` came to depends on the batch, so the three are written together.
  if (part.contains("train") &&
      (part["train"].contains("batch") || part["train"].contains("lanes") || part["train"].contains("micro_batch")))
    for (const char* key : {"batch", "micro_batch", "lanes"}) part["train"][key] = full["train"][key];
  for (const char* section : {"data", "optim", "indexer", "experts", "train"})
    if (part.contains(section) && part[section].empty()) part.erase(section);
  return part;
}

}  // namespace

void resolve_stages(const Tree& root, RunConfig& config) {
  const TrainOptions unresolved = config.train;
  resolve_batch(config, "", config.train);
  const auto* list = root.find("stages");
  config.staged = list && !list->value.is_null();
  if (!config.staged) {
    Stage whole{.name = "run",
                .data = config.data,
                .optim = config.optim,
                .indexer = config.indexer,
                .experts = config.experts,
                .train = config.train};
    config.stages = {std::move(whole)};
    config.stages[0].steps = config.stages[0].schedule_steps = config.total_steps();
    resolve_names(config);
    return;
  }
  if (!list->value.is_list() || list->value.items.empty())
    fail(list->where, "stages",
         fmt::format("found {}, expected a list of stages (each begins with '- ')", list->value.found()));
  int64_t first = 0;
  for (std::size_t i = 0; i < list->value.items.size(); ++i) {
    const std::string prefix = fmt::format("stages.{}.", i);
    Stage stage = read_stage(list->value.items[i], prefix, config, unresolved);
    if (stage.name.empty()) stage.name = fmt::format("stage-{}", i + 1);
    for (const auto& other : config.stages)
      if (other.name == stage.name)
        config.fail(prefix + "name",
                    fmt::format("found '{}', which another stage has already, expected a name of its own", stage.name));
    stage.first = first;
    first += *stage.steps;
    config.stages.push_back(std::move(stage));
  }
  resolve_names(config);
  for (std::size_t i = 0; i < config.stages.size(); ++i) {
    auto& stage = config.stages[i];
    const Tree& tree = list->value.items[i];
    const auto* optim = tree.find("optim");
    const bool own = optim && optim->value.find("schedule");
    stage.schedule_first = own ? stage.first : 0;
    stage.schedule_steps = own ? *stage.steps : first;
    stage.overrides = overrides_of(stage, tree);
  }
}

}  // namespace cairn::config
