#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "trainer/config/resolve.h"

namespace cairn::config {
namespace {

constexpr int kUsualLanes = 4, kUsualMicroBatch = 8;  // what `auto` aims at

const std::vector<std::string> kObjectives = {"pretrain", "sft", "grpo"};
const std::vector<std::string> kLaterObjectives = {"distill", "dpo", "ppo"};

bool power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

struct ModelNumber {
  std::string key;
  int64_t value;
};

// The first of the names (families differ) that the model section has as an integer.
std::optional<ModelNumber> model_number(const RunConfig& config, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto at = config.model.config.find(name); at != config.model.config.end() && at->is_number_integer())
      return ModelNumber{fmt::format("model.{}", name), at->get<int64_t>()};
  return std::nullopt;
}

void check_objective(const RunConfig& config) {
  if (std::find(kObjectives.begin(), kObjectives.end(), config.objective) != kObjectives.end()) return;
  if (std::find(kLaterObjectives.begin(), kLaterObjectives.end(), config.objective) != kLaterObjectives.end())
    config.fail("objective", fmt::format("found '{}', which is not there yet, expected one of {}", config.objective,
                                         fmt::join(kObjectives, ", ")));
  config.fail("objective", fmt::format("found '{}', expected one of {}{}", config.objective,
                                       fmt::join(kObjectives, ", "), did_you_mean(config.objective, kObjectives)));
}

// Sections of reinforcement learning, and what they take of the others.
void check_rl(const RunConfig& config) {
  if (config.objective != "grpo") {
    for (const char* section : {"rl", "rollout", "task", "rewards"})
      if (config.locations.contains(section))
        config.fail(section, fmt::format("found it under `objective: {}`, expected it with `objective: grpo`",
                                         config.objective));
    return;
  }
  const int64_t group = config.rl.advantage.num_generations;
  for (std::size_t i = 0; i < config.stages.size(); ++i) {
    const std::string prefix = config.staged ? fmt::format("stages.{}.", i) : "";
    const auto& train = config.stages[i].train;
    if (train.batch % group != 0)
      config.fail(
          key_in_stage(config, prefix, "train.batch"),
          fmt::format("found {} completions, expected a multiple of rl.num_generations ({})", train.batch, group));
    if (!config.stages[i].data.train.empty() || !config.stages[i].data.validation.empty())
      config.fail(key_in_stage(config, prefix, "data"),
                  "found sources of text, expected none with `objective: grpo`: what is asked stands in `task`");
  }
  if (config.train.epochs || config.train.tokens)
    config.fail(config.train.epochs ? "train.epochs" : "train.tokens",
                "found it with `objective: grpo`, expected train.steps or train.minutes");
  if (config.data.tokenizer.train)
    config.fail("data.tokenizer.train",
                "found a tokenizer to train without a text, expected file, bytes or model.from");
}

void check_model(const RunConfig& config) {
  const auto& model = config.model;
  if (model.from) {
    // An indexer may be added to the weights: a model_type that has one, and its index_ settings; and modules that
    // predict further tokens.
    for (const auto& [key, value] : model.config.items()) {
      if (key == "num_nextn_predict_layers") continue;
      if (key == "model_type" || (key.starts_with("index_") && model.config.contains("model_type"))) continue;
      config.fail(
          "model." + key,
          "found a shape beside model.from, expected one or the other: the weights bring theirs; what may be "
          "added is an indexer, by a model_type that has one (llama_dsa, ...) and its index_ settings, and modules "
          "that predict further tokens, by num_nextn_predict_layers");
    }
    return;
  }
  if (model.config.empty())
    config.fail("model", "found nothing, expected `base: FILE`, Hugging Face config.json keys, or `from: ADDRESS`");
  if (!model.config.contains("model_type"))
    config.fail("model.model_type", "found nothing, expected the name of a family such as llama");
  for (auto names : {std::initializer_list<const char*>{"hidden_size", "n_embd"},
                     {"num_hidden_layers", "n_layer"},
                     {"num_attention_heads", "n_head"},
                     {"num_key_value_heads"},
                     {"vocab_size"}})
    if (const auto number = model_number(config, names); number && number->value < 1)
      config.fail(number->key, fmt::format("found {}, expected an integer of at least 1", number->value));

  const auto width = model_number(config, {"hidden_size", "n_embd"});
  const auto heads = model_number(config, {"num_attention_heads", "n_head"});
  const auto kv_heads = model_number(config, {"num_key_value_heads"});
  // NOTE: these two have a head_dim that does not follow from the width, also where the file does not say it.
  const std::string type = model.config["model_type"].is_string() ? model.config["model_type"].get<std::string>() : "";
  const bool own_head_dim =
      type.starts_with("qwen3") || type.starts_with("gemma3") || model_number(config, {"head_dim"});
  if (width && heads && !own_head_dim && width->value % heads->value != 0)
    config.fail(heads->key, fmt::format("found {}, expected a divisor of {} ({})", heads->value, width->key.substr(6),
                                        width->value));
  if (heads && kv_heads && heads->value % kv_heads->value != 0)
    config.fail(kv_heads->key, fmt::format("found {}, expected a divisor of {} ({})", kv_heads->value,
                                           heads->key.substr(6), heads->value));
}

void check_tokenizer(const RunConfig& config) {
  const auto& tokenizer = config.data.tokenizer;
  const int kinds = tokenizer.train.has_value() + tokenizer.file.has_value() + tokenizer.bytes;
  if (kinds > 1) config.fail("data.tokenizer", "found several tokenizers, expected one of train, file, bytes");
  const auto only_shards = [](const std::vector<SourceOptions>& list) {
    return std::all_of(list.begin(), list.end(), [](const auto& source) { return !source.shards.empty(); });
  };
  const bool ids = only_shards(config.data.validation) &&
                   std::all_of(config.stages.begin(), config.stages.end(),
                               [&](const Stage& stage) { return only_shards(stage.data.train); });
  const auto vocabulary = model_number(config, {"vocab_size"});
  if (kinds == 0 && !config.model.from && !(ids && vocabulary))
    config.fail("data.tokenizer",
                "found nothing, expected {train: {kind: bpe, vocab_size: N}}, {file: tokenizer.json} or {bytes: true}");
  if (tokenizer.train && ids)
    config.fail("data.tokenizer.train",
                "found a tokenizer to train while every source is token ids, expected text among the sources");
  if (tokenizer.train && config.model.from)
    config.fail("data.tokenizer.train",
                "found a new tokenizer for the weights of model.from, expected theirs: leave data.tokenizer out");
  const int64_t entries = tokenizer.train ? tokenizer.train->vocab_size : tokenizer.bytes ? 256 : 0;
  if (vocabulary && vocabulary->value < entries)
    config.fail(vocabulary->key, fmt::format("found {}, expected at least {}, the entries of data.tokenizer",
                                             vocabulary->value, entries));
}

void check_sources(const RunConfig& config, const std::string& prefix, const std::vector<SourceOptions>& sources,
                   const std::string& list) {
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto& source = sources[i];
    const std::string key = key_in_stage(config, prefix, fmt::format("{}.{}", list, i));
    const int kinds = !source.text.empty() + !source.jsonl.empty() + !source.shards.empty();
    if (kinds != 1)
      config.fail(key, fmt::format("found {} of text, jsonl, shards, expected one", kinds == 0 ? "none" : "several"));
    if (!source.dtype.empty() && source.shards.empty())
      config.fail(key + ".dtype",
                  fmt::format("found '{}' on a source of text, expected it with `shards` alone", source.dtype));
    const bool example = !source.prompt.empty() || !source.completion.empty(), sft = config.objective == "sft";
    if (example && !sft)
      config.fail(
          key + (source.completion.empty() ? ".prompt" : ".completion"),
          fmt::format("found a part of an example, expected it under `objective: sft`, not {}", config.objective));
    if (example && source.jsonl.empty())
      config.fail(key, "found the parts of an example, expected them of `jsonl` alone");
    if (example && source.completion.empty())
      config.fail(key + ".completion", "found nothing beside prompt, expected what is learned, as \"{answer}\"");
    if (sft && !example && source.shards.empty())
      config.fail(key,
                  "found text alone, expected examples for `objective: sft`: jsonl with prompt and completion, as "
                  "{jsonl: FILE, prompt: \"{question}\\n\", completion: \"{answer}\"}");
    if (!source.separator.empty() && source.text.empty())
      config.fail(key + ".separator", "found a separator of documents, expected it with `text` alone");
  }
}

void check_data(const RunConfig& config, const std::string& prefix, const Stage& stage) {
  if (stage.data.train.empty() && config.objective != "grpo")
    config.fail(key_in_stage(config, prefix, "data.train"), "found no source, expected a list such as [{text: FILE}]");
  check_sources(config, prefix, stage.data.train, "data.train");
  check_sources(config, prefix, stage.data.validation, "data.validation");
  if (config.objective == "sft" && !stage.data.mask_documents)
    config.fail(key_in_stage(config, prefix, "data.mask_documents"),
                "found false, expected true: examples that share a row do not see one another");
  const auto positions = model_number(config, {"max_position_embeddings", "n_positions", "n_ctx"});
  if (positions && config.objective != "grpo" && stage.data.context > positions->value)
    config.fail(key_in_stage(config, prefix, "data.context"),
                fmt::format("found {}, expected at most {}, the {} of the model ({})", stage.data.context,
                            positions->value, positions->key.substr(6), config.locate(positions->key).text()));
}

void check_optim(const RunConfig& config, const std::string& prefix, const Stage& stage) {
  const auto key = [&](const std::string& name) { return key_in_stage(config, prefix, "optim." + name); };
  const auto& optim = stage.optim;
  if (optim.name != "adamw" && optim.nesterov && optim.momentum == 0)
    config.fail(key("momentum"),
                "found 0 while optim.nesterov is true, expected a momentum above 0 or `nesterov: false`");
  const auto& schedule = optim.schedule;
  const bool decays = schedule.name == "linear" || schedule.name == "cosine" || schedule.name == "wsd";
  if (schedule.decay && !decays)
    config.fail(
        key("schedule.decay"),
        fmt::format(
            "found {} for a schedule that does not decay by steps ({}), expected null, or linear, cosine or wsd",
            *schedule.decay, schedule.name));
  const auto total = stage.schedule_steps;
  if (decays && (schedule.name == "wsd" || !schedule.decay) && !total && !config.train.epochs)
    config.fail(
        key("schedule.name"),
        fmt::format("found '{}', whose decay needs to know the last step, while only train.minutes ends the run; "
                    "expected train.steps, train.tokens or train.epochs, or `constant`",
                    schedule.name));
  if (total && schedule.warmup > *total)
    config.fail(key("schedule.warmup"),
                fmt::format("found {}, expected at most {}, the steps of the schedule", schedule.warmup, *total));
  if (total && schedule.decay && schedule.warmup + *schedule.decay > *total)
    config.fail(key("schedule.decay"),
                fmt::format("found {} after a warm-up of {}, expected together at most {}, the steps of the schedule",
                            *schedule.decay, schedule.warmup, *total));
}

void check_indexer(const RunConfig& config, const std::string& prefix, const Stage& stage) {
  const auto key = [&](const std::string& name) {
    // `train: indexer` in a stage is short for indexer.train.
    const auto inner = config.locations.lower_bound(prefix + name + ".");
    const bool is_short = !prefix.empty() && config.locations.contains(prefix + name) &&
                          !(inner != config.locations.end() && inner->first.starts_with(prefix + name + "."));
    return is_short ? prefix + name : key_in_stage(config, prefix, "indexer." + name);
  };
  const IndexerOptions& o = stage.indexer;
  if (o.mode == "dense" && o.train == "indexer")
    config.fail(key("train"),
                fmt::format("found 'indexer' in {}, whose mode is dense: the indexer does not learn then, so nothing "
                            "would; expected mode: warmup or sparse",
                            config.staged ? "stage " + stage.name : "a run"));
  if (o.mode == "warmup" && o.train == "model")
    config.fail(key("train"),
                "found 'model' while the mode is warmup, in which the indexer learns; expected auto or "
                "all, or mode: dense");
}

void check_train(const RunConfig& config) {
  const auto& train = config.train;
  if (config.staged) {
    for (const auto& [key, given] : {std::pair{"train.steps", train.steps.has_value()},
                                     {"train.tokens", train.tokens.has_value()},
                                     {"train.epochs", train.epochs.has_value()}})
      if (given) config.fail(key, "found it beside `stages`, expected one or the other: the stages' steps end the run");
  } else if (!train.steps && !train.tokens && !train.epochs && !train.minutes) {
    config.fail("train.steps",
                "found no rule that ends the run, expected steps, tokens, epochs or minutes (or `stages`)");
  }
  for (const auto& stage : config.stages)
    if (config.parallel.data > 0 && stage.train.lanes % config.parallel.data != 0)
      config.fail("parallel.data", fmt::format("found {}, expected a divisor of train.lanes ({})", config.parallel.data,
                                               stage.train.lanes));
  if (config.checkpoints.keep.best && !config.checkpoints.keep.all &&
      (config.eval.every == 0 || (config.data.validation.empty() && config.data.validation_fraction == 0)))
    config.fail("checkpoints.keep.best",
                "found true without a validation loss to go by, expected eval.every and data.validation or "
                "data.validation_fraction");
  if (config.eval.every > 0 && config.objective != "grpo" && config.data.validation.empty() &&
      config.data.validation_fraction == 0)
    config.fail(
        "eval.every",
        fmt::format(
            "found {} without anything to validate on, expected data.validation or data.validation_fraction, or 0",
            config.eval.every));
}

}  // namespace

std::string key_in_stage(const RunConfig& config, const std::string& prefix, const std::string& key) {
  return config.locations.contains(prefix + key) ? prefix + key : key;
}

void resolve_batch(const RunConfig& config, const std::string& prefix, TrainOptions& train) {
  const auto key = [&](const std::string& name) { return key_in_stage(config, prefix, "train." + name); };
  if (train.lanes != 0 && !power_of_two(train.lanes))
    config.fail(key("lanes"),
                fmt::format("found {}, expected a power of two: lanes are joined in a binary tree", train.lanes));
  if (train.lanes == 0)
    for (int lanes = kUsualLanes; train.lanes == 0; lanes /= 2)
      if (lanes == 1 || train.batch % (lanes * std::max(1, train.micro_batch)) == 0) train.lanes = lanes;
  if (train.micro_batch == 0 && train.batch % train.lanes == 0)
    for (int micro = kUsualMicroBatch; train.micro_batch == 0; --micro)
      if (train.batch / train.lanes % micro == 0) train.micro_batch = micro;
  const int64_t unit = int64_t{std::max(1, train.micro_batch)} * train.lanes;
  if (train.batch % unit != 0)
    config.fail(key("batch"), fmt::format("found {}, expected a multiple of micro_batch * lanes ({} * {} = {})",
                                          train.batch, std::max(1, train.micro_batch), train.lanes, unit));
}

void check_run(const RunConfig& config) {
  check_objective(config);
  check_rl(config);
  check_model(config);
  check_train(config);
  for (std::size_t i = 0; i < config.stages.size(); ++i) {
    const std::string prefix = config.staged ? fmt::format("stages.{}.", i) : "";
    check_data(config, prefix, config.stages[i]);
    check_optim(config, prefix, config.stages[i]);
    check_indexer(config, prefix, config.stages[i]);
  }
  check_tokenizer(config);
}

}  // namespace cairn::config
