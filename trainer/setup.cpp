#include "trainer/setup.h"

#include "models/families/family.h"
#include "trainer/address.h"
#include "trainer/data/trained_tokenizer.h"
#include "trainer/model_io.h"
#include "trainer/run_files.h"

namespace cairn {
namespace fs = std::filesystem;
namespace {

data::SourceOptions source_options(const config::SourceOptions& source) {
  return {.name = source.name,
          .text = source.text,
          .separator = source.separator,
          .jsonl = source.jsonl,
          .field = source.field,
          .prompt = source.prompt,
          .completion = source.completion,
          .shards = source.shards,
          .dtype = source.dtype,
          .weight = source.weight};
}

data::DataOptions data_options(const config::DataOptions& from, const std::string& objective) {
  data::DataOptions to;
  to.none = objective == "grpo";
  for (const auto& source : from.train) to.train.push_back(source_options(source));
  for (const auto& source : from.validation) to.validation.push_back(source_options(source));
  to.validation_fraction = from.validation_fraction;
  to.context = from.context;
  to.mask_documents = from.mask_documents;
  to.examples = objective == "sft";
  to.overlong = from.overlong;
  to.cache = from.cache;
  return to;
}

optim::ScheduleOptions schedule_options(const config::ScheduleOptions& from) {
  return {.name = from.name, .warmup = from.warmup, .decay = from.decay, .final = from.final};
}

// Steps of the stage's schedule; the run's length where the stage has no schedule of its own.
std::optional<int64_t> schedule_length(const config::Stage& stage, std::optional<int64_t> last) {
  if (stage.schedule_steps) return stage.schedule_steps;
  return last ? std::optional<int64_t>(*last - stage.schedule_first) : std::nullopt;
}

}  // namespace

fs::path origin_folder(const config::RunConfig& config, const fs::path& run) {
  if (!run.empty() && fs::is_directory(run / "checkpoints")) {
    const auto stored = checkpoints::Store(run, checkpoints::Store::Mode::read).list();
    // The weights are checked where they are loaded; what is read here has to be whole here.
    const auto whole = [](const checkpoints::StoredStep& step) {
      return std::none_of(step.manifest.files.begin(), step.manifest.files.end(), [&](const auto& file) {
        return file.path.find('/') == std::string::npos && file.path.ends_with(".json") &&
               checkpoints::digest_file(step.path / file.path).xxh3 != file.xxh3;
      });
    };
    const auto newest = std::find_if(stored.rbegin(), stored.rend(), whole);
    if (newest != stored.rend()) return newest->path;
  }
  const std::string& from = *config.model.from;
  if (!is_model(from)) {
    // RUN@STEP of a step that is not stored: rebuilt where the cache has it no more.
    if (from.find('@') != std::string::npos && !fs::exists(from)) return locate(from).folder;
    config.fail(
        "model.from",
        fmt::format(
            "found '{}', where no model is (no config.json, no GGUF file), expected the weights that the run starts "
            "from{}",
            from, run.empty() ? "" : ": no checkpoint of it is stored, so it begins again"));
  }
  return from;
}

namespace {

// The weights of model.from get an indexer beside each attention: `section` is their config.json.
void add_indexer(const config::RunConfig& config, config::Json& section) {
  config::Json added = config.model.config;
  added.erase("num_nextn_predict_layers");
  if (added.empty()) return;
  static const std::vector<std::string> known{"index_topk", "index_n_heads", "index_head_dim", "index_hadamard"};
  const std::string was = section.value("model_type", "");
  if (!added.at("model_type").is_string())
    config.fail("model.model_type", "found no text, expected the name of a family");
  const std::string type = added.at("model_type").get<std::string>();
  std::string without;
  try {
    const char* name = models::family(type).without_indexer;
    without = name ? name : "";
  } catch (const models::ConfigError& error) {
    config.fail("model.model_type", error.what());
  }
  if (type != was && without != was) {
    config.fail("model.model_type", fmt::format("found '{}' beside weights of a {}, expected the family that adds an "
                                                "indexer to these, or no model_type",
                                                type, was));
  }
  section["model_type"] = type;
  for (const auto& [key, value] : added.items()) {
    if (key == "model_type") continue;
    if (std::find(known.begin(), known.end(), key) == known.end() || without.empty()) {
      config.fail("model." + key, fmt::format("unknown setting of an indexer that is added to weights{}; there are {}",
                                              models::did_you_mean(key, known), fmt::join(known, ", ")));
    }
    section[key] = value;
  }
}

}  // namespace

namespace {

// Modules that predict further tokens: as many as are asked for, new ones where the weights of model.from have fewer;
// else those that the weights hold.
void settle_modules(const config::RunConfig& config, const std::string& origin, config::Json& section) {
  const char* key = "num_nextn_predict_layers";
  if (config.model.config.contains(key)) {
    section[key] = config.model.config.at(key);
    return;
  }
  if (section.contains(key) && section.at(key) != 0) section[key] = modules_in(section, open_weights(origin));
}

}  // namespace

TokenizerPtr make_tokenizer(const config::RunConfig& config, const fs::path& run) {
  config::require_paths(config);
  const auto& options = config.data.tokenizer;
  if (options.bytes) return data::Tokenizer::bytes();
  if (options.file) return data::Tokenizer::from_file(*options.file);
  if (options.train) {
    std::vector<data::SourceOptions> sources;
    for (const auto& source : config.stages.at(0).data.train) {
      if (!source.shards.empty())
        config.fail(
            "data.tokenizer.train",
            fmt::format("source '{}' holds ids, not text: give the tokenizer that made them (data.tokenizer.file)",
                        source.name));
      sources.push_back(source_options(source));
    }
    return data::trained_tokenizer(sources, config.data.validation_fraction, {.vocab_size = options.train->vocab_size},
                                   config.data.cache);
  }
  if (config.model.from) return data::Tokenizer::from_file(origin_folder(config, run).string());
  config.fail("data.tokenizer", "is missing: expected train, file or bytes");
}

models::DecoderConfig make_decoder_config(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                                          const fs::path& run) {
  // The weights' own config.json may hold keys that only other programs read.
  const bool from = config.model.from.has_value();
  const std::string origin = from ? origin_folder(config, run).string() : "";
  config::Json section = from ? read_model_config(origin) : config.model.config;
  if (from) add_indexer(config, section);
  const bool has_vocabulary = section.contains("vocab_size") && !section.at("vocab_size").is_null();
  if (!has_vocabulary) section["vocab_size"] = tokenizer.vocab_size();
  if (tokenizer.eos_id() && !section.contains("eos_token_id")) section["eos_token_id"] = *tokenizer.eos_id();
  if (tokenizer.bos_id() && !section.contains("bos_token_id")) section["bos_token_id"] = *tokenizer.bos_id();
  section["dropout"] = config.model.dropout;
  if (!from) section["init"] = {{"name", config.model.init.name}};
  if (config.model.init.std) section["initializer_range"] = *config.model.init.std;
  try {
    if (from) settle_modules(config, origin, section);
    models::DecoderConfig decoder = models::decoder_config(section, !from);
    const auto modules = config.model.config.find("num_nextn_predict_layers");
    if (from && modules != config.model.config.end() && *modules != decoder.mtp.size()) {
      config.fail("model.num_nextn_predict_layers",
                  fmt::format("found {}, but a {} has no modules that predict further tokens", modules->dump(),
                              decoder.model_type));
    }
    if (decoder.vocab_size < tokenizer.vocab_size()) {
      config.fail("model.vocab_size",
                  fmt::format("found {}, expected at least {}: the tokenizer has ids up to {}", decoder.vocab_size,
                              tokenizer.vocab_size(), tokenizer.vocab_size() - 1));
    }
    for (const auto& stage : config.stages) {
      if (config.objective != "grpo" && stage.data.context > decoder.max_position_embeddings) {
        config.fail("data.context", fmt::format("found {}, expected at most max_position_embeddings of the model ({})",
                                                stage.data.context, decoder.max_position_embeddings));
      }
    }
    return decoder;
  } catch (const models::ConfigError& error) {
    if (config.model.config.contains(error.key)) config.fail("model." + error.key, error.what());
    if (from) {
      config.fail("model.from", fmt::format("{}{}: {}: {}", origin, fs::is_directory(origin) ? "/config.json" : "",
                                            error.key, error.what()));
    }
    config.fail("model." + error.key, error.what());
  }
}

std::unique_ptr<data::Dataset> make_dataset(const config::RunConfig& config, TokenizerPtr tokenizer,
                                            const data::ProgressCallback& progress) {
  config::require_paths(config);
  std::vector<data::StageData> stages;
  for (const auto& stage : config.stages)
    stages.push_back({.data = data_options(stage.data, config.objective),
                      .batch = stage.train.batch,
                      .steps = config.staged ? stage.steps.value_or(0) : 0});
  return std::make_unique<data::Dataset>(std::move(stages), std::move(tokenizer), config.seed.data, progress);
}

std::optional<int64_t> last_step(const config::RunConfig& config, const data::Dataset& data) {
  std::optional<int64_t> last = config.total_steps();
  if (config.train.epochs) {
    const int64_t steps = std::max<int64_t>(1, data.steps_of_epochs(*config.train.epochs));
    last = last ? std::min(*last, steps) : steps;
  }
  return last;
}

void check_schedules(const config::RunConfig& config, std::optional<int64_t> last) {
  for (const auto& stage : config.stages) {
    const auto length = schedule_length(stage, last);
    const std::string& name = stage.optim.schedule.name;
    if (!length) {
      if (name != "constant" && name != "inverse_sqrt") {
        config.fail(
            "optim.schedule.name",
            fmt::format("'{}' needs to know where the run ends: give train.steps, tokens or epochs besides minutes",
                        name));
      }
      continue;
    }
    try {
      optim::check_schedule(schedule_options(stage.optim.schedule), *length);
    } catch (const std::invalid_argument& error) {
      const std::string text = error.what(), key = "optim.schedule: ";
      config.fail("optim.schedule", text.starts_with(key) ? text.substr(key.size()) : text);
    }
  }
}

void check_samples(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                   const models::DecoderConfig& decoder) {
  for (const auto& stage : config.stages) {
    const auto& sample = stage.train.sample;
    if (sample.every == 0) continue;
    const auto tokens = static_cast<int64_t>(tokenizer.encode(sample.prompt, true).size());
    if (tokens >= decoder.max_position_embeddings) {
      config.fail("train.sample.prompt",
                  fmt::format("found {} tokens, expected fewer than max_position_embeddings of the model ({})", tokens,
                              decoder.max_position_embeddings));
    }
  }
}

namespace {

// Settings of another optimizer than the stage has. Defaults are no settings: run.yaml writes all of them out.
void unused_settings(const config::RunConfig& config, size_t index, std::vector<std::string>& lines) {
  const config::OptimOptions &o = config.stages[index].optim, plain;
  struct Key {
    const char* name;
    bool changed;
    std::vector<std::string> users;
  };
  const Key keys[] = {{"betas", o.betas != plain.betas, {"adamw", "muon"}},
                      {"eps", o.eps != plain.eps, {"adamw", "muon"}},
                      {"momentum", o.momentum != plain.momentum, {"muon", "sgd"}},
                      {"nesterov", o.nesterov != plain.nesterov, {"muon", "sgd"}},
                      {"ns_steps", o.ns_steps != plain.ns_steps, {"muon"}},
                      {"adjust_lr_fn", o.adjust_lr_fn != plain.adjust_lr_fn, {"muon"}},
                      {"adamw_lr", o.adamw_lr != plain.adamw_lr, {"muon"}}};
  for (const Key& key : keys) {
    const std::string whole = std::string("optim.") + key.name, own = fmt::format("stages.{}.{}", index, whole);
    const bool here = config.locations.contains(own);
    if (!key.changed || std::find(key.users.begin(), key.users.end(), o.name) != key.users.end()) continue;
    if (!here && (index > 0 || !config.locations.contains(whole))) continue;
    lines.push_back(fmt::format("{}: {}: has no effect: it is a setting of {}, and the optimizer is {}",
                                config.locate(here ? own : whole).text(), here ? own : whole,
                                fmt::join(key.users, " and "), o.name));
  }
}

}  // namespace

std::vector<std::string> doubtful_settings(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                                           std::optional<int64_t> last) {
  std::vector<std::string> lines;
  if (!tokenizer.eos_id()) {
    const char* key = config.data.tokenizer.file ? "data.tokenizer.file" : "model.from";
    lines.push_back(
        fmt::format("{}: {}: the tokenizer has no end-of-text token: documents follow one another without a mark, and "
                    "generated text does not end by itself (tokenizer_config.json beside it names one: eos_token)",
                    config.locate(key).text(), key));
  }
  std::vector<int64_t> beyond;
  for (const int64_t step : config.checkpoints.at)
    if (last && step > *last) beyond.push_back(step);
  if (!beyond.empty()) {
    lines.push_back(
        fmt::format("{}: checkpoints.at: found {}, beyond the last step ({}): no checkpoint is stored there",
                    config.locate("checkpoints.at").text(), fmt::join(beyond, ", "), *last));
  }
  if (config.train.precision != "float32") {
    lines.push_back(
        fmt::format("{}: train.precision: found {}: on a CPU the bits of its products depend on the number of threads, "
                    "so digests are the same for equal numbers of threads alone (build.json: depends_on)",
                    config.locate("train.precision").text(), config.train.precision));
  }
  for (size_t i = 0; i < config.stages.size(); ++i) unused_settings(config, i, lines);
  const bool learns = std::any_of(config.stages.begin(), config.stages.end(), [](const config::Stage& stage) {
    return stage.indexer.mode != "dense" && stage.indexer.train != "model";
  });
  for (const char* key : {"indexer.lr", "indexer.clip", "indexer.loss_coef"}) {
    const config::IndexerOptions &o = config.stages.front().indexer, plain;
    const bool changed = key == std::string("indexer.lr")     ? o.lr != plain.lr
                         : key == std::string("indexer.clip") ? o.clip != plain.clip
                                                              : o.loss_coef != plain.loss_coef;
    if (!learns && changed && config.locations.contains(key))
      lines.push_back(
          fmt::format("{}: {}: has no effect: the indexer learns in no stage", config.locate(key).text(), key));
  }
  return lines;
}

optim::OptimizerOptions optimizer_options(const config::Stage& stage) {
  const auto& from = stage.optim;
  optim::OptimizerOptions to = optim::defaults(from.name);
  to.lr = from.lr;
  to.betas = {from.betas[0], from.betas[1]};
  to.eps = from.eps;
  to.weight_decay = from.weight_decay;
  to.decay_roles = from.decay_roles;
  to.momentum = from.momentum;
  to.nesterov = from.nesterov;
  to.ns_steps = from.ns_steps;
  to.adjust_lr_fn = from.adjust_lr_fn;
  to.adamw_lr_factor = from.adamw_lr ? *from.adamw_lr / from.lr : 1.0;
  to.reference = stage.train.kernels != "fast";
  return to;
}

double learning_rate(const config::Stage& stage, int64_t step, std::optional<int64_t> last) {
  const int64_t length = schedule_length(stage, last).value_or(INT64_MAX);
  return stage.optim.lr *
         optim::schedule_multiplier(schedule_options(stage.optim.schedule), step - stage.schedule_first, length);
}

namespace {

// Whether the model and whether the indexer learn.
std::pair<bool, bool> indexer_trains(const config::Stage& stage) {
  struct Mode {
    const char* name;
    const char* automatic;
  };
  static constexpr Mode kModes[] = {{"dense", "model"}, {"warmup", "indexer"}, {"sparse", "all"}};
  std::string train = stage.indexer.train;
  for (const Mode& mode : kModes)
    if (train == "auto" && stage.indexer.mode == mode.name) train = mode.automatic;
  return {train != "indexer", train != "model" && stage.indexer.mode != "dense"};
}

}  // namespace

models::IndexerPass indexer_pass(const config::Stage& stage) {
  using Mode = models::IndexerPass::Mode;
  const config::IndexerOptions& o = stage.indexer;
  return {.mode = o.mode == "dense"    ? Mode::dense
                  : o.mode == "warmup" ? Mode::warmup
                                       : Mode::sparse,
          .topk = o.topk.value_or(0),
          .sinks = o.sinks,
          .window = o.window,
          .train = indexer_trains(stage).second,
          .loss_coef = o.loss_coef};
}

void check_indexer(const config::RunConfig& config, const models::DecoderConfig& decoder) {
  int64_t least = 0;  // index_topk of the model; 0: it has no indexer
  for (const models::BlockConfig& block : decoder.blocks)
    if (block.indexer) least = least ? std::min(least, block.indexer->index_topk) : block.indexer->index_topk;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const config::IndexerOptions& options = config.stages[i].indexer;
    const std::string own = fmt::format("stages.{}.indexer", i);
    const std::string key = config.locations.contains(own) ? own : "indexer";
    if (least == 0 && options != config::IndexerOptions()) {
      config.fail(key,
                  "found settings of an indexer, but the model has none: expected a model_type with sparse attention "
                  "(deepseek_v32, glm_moe_dsa, llama_dsa, ...), or no such section");
    }
    const int64_t topk = options.topk.value_or(least), kept = options.sinks + options.window;
    if (least > 0 && kept > topk) {
      config.fail(key, fmt::format("found {} sinks and a window of {}, expected together at most topk ({}): they are "
                                   "among the chosen keys",
                                   options.sinks, options.window, topk));
    }
  }
}

void check_experts(const config::RunConfig& config, const models::DecoderConfig& decoder) {
  const bool has = std::any_of(decoder.blocks.begin(), decoder.blocks.end(),
                               [](const models::BlockConfig& block) { return block.experts.has_value(); });
  if (has) return;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    if (config.stages[i].experts == config::ExpertsOptions()) continue;
    const std::string own = fmt::format("stages.{}.experts", i);
    config.fail(config.locations.contains(own) ? own : "experts",
                "found settings of experts, but the model has none: expected a model_type with experts (mixtral, "
                "qwen3_moe, glm4_moe, ...), or no such section");
  }
}

void check_modules(const config::RunConfig& config, const models::DecoderConfig& decoder) {
  const auto modules = static_cast<int64_t>(decoder.mtp.size());
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const config::Stage& stage = config.stages[i];
    const std::string key = "train.mtp_loss_scaling_factor", own = fmt::format("stages.{}.{}", i, key);
    if (modules == 0 && stage.train.mtp_loss_scaling_factor) {
      config.fail(config.locations.contains(own) ? own : key,
                  fmt::format("found {}, but the model has no modules that predict further tokens: expected "
                              "num_nextn_predict_layers above 0 in the model section (deepseek_v3, deepseek_v32, "
                              "glm4_moe, glm_moe_dsa, qwen3_next), or no such key",
                              *stage.train.mtp_loss_scaling_factor));
    }
    if (modules > 0 && stage.data.context <= modules) {
      config.fail("data.context",
                  fmt::format("found {}, expected more than num_nextn_predict_layers ({}): the last module would have "
                              "nothing to predict",
                              stage.data.context, modules));
    }
  }
}

StepSettings step_settings(const config::RunConfig& config, const config::Stage& stage, int64_t step,
                           std::optional<int64_t> last) {
  const config::IndexerOptions& indexer = stage.indexer;
  const double lr = learning_rate(stage, step, last);
  return {.batch = stage.train.batch,
          .micro_batch = stage.train.micro_batch,
          .lanes = stage.train.lanes,
          .lr = lr,
          .clip = stage.optim.clip,
          .trains_model = indexer_trains(stage).first,
          .trains_indexer = indexer_trains(stage).second,
          .indexer_lr = lr * (indexer.lr ? *indexer.lr / stage.optim.lr : 1),
          .indexer_clip = indexer.clip,
          .indexer = indexer_pass(stage),
          .experts = {.capacity_factor = stage.experts.capacity_factor,
                      .sequence_aux_loss = stage.experts.sequence_aux_loss,
                      .router_z_loss = stage.experts.router_z_loss},
          .bias_update_speed = stage.experts.bias_update_speed,
          .z_loss = stage.optim.z_loss,
          .mtp_loss_scaling_factor = stage.train.mtp_loss_scaling_factor.value_or(0.1),
          .dropout = config.model.dropout,
          .dropout_seed = config.seed.dropout,
          .products = product_type(stage.train.precision),
          .reference = stage.train.kernels == "reference",
          .aten = stage.train.kernels == "aten"};
}

at::ScalarType weight_type(const std::string& precision) { return precision == "bf16" ? at::kBFloat16 : at::kFloat; }
at::ScalarType product_type(const std::string& precision) {
  return precision == "float32" ? at::kFloat : at::kBFloat16;
}

}  // namespace cairn
