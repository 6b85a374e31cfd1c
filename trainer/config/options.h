// The settings of a run as plain structs with their defaults; a YAML key is a field's name. What each means, its range
// and its choices stand in visit.h, one line a key.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace cairn::config {

using Json = nlohmann::ordered_json;

// `seed: 7`, or `seed: {init: 7, data: 8, dropout: 9, sample: 10}`.
struct SeedOptions {
  uint64_t init = 1234, data = 1234, dropout = 1234, sample = 1234;
  bool operator==(const SeedOptions&) const = default;
};

struct InitOptions {
  std::string name = "normal";  // the models know the names and refuse others
  std::optional<double> std;    // null: the model's initializer_range
  bool operator==(const InitOptions&) const = default;
};

// Our own keys stand here; every other key of the section is a Hugging Face config.json key and lies in `config`,
// unchecked: the family checks it and reports with RunConfig::fail("model.<key>", ...).
struct ModelOptions {
  std::optional<std::string> from;  // an address: RUN@STEP, a Hugging Face folder
  InitOptions init;
  double dropout = 0.0;
  Json config = Json::object();
  bool operator==(const ModelOptions&) const = default;
};

// One source of text or tokens: exactly one of text, jsonl, shards is not empty.
struct SourceOptions {
  std::string name;                 // always set once resolved, unique in its list
  std::string text, jsonl, shards;  // an absolute file, folder or glob, or a known name ("foldoc") as it was written
  std::string separator;            // text: what parts the documents of a file; "": "<|endoftext|>"
  std::string field = "text";       // jsonl: the key that holds the text
  std::string prompt, completion;   // jsonl: examples, as templates over the keys; in place of `field`
  std::string dtype;                // shards without a header: the type of an id; "" is `auto` in the file
  double weight = 1.0;
  bool operator==(const SourceOptions&) const = default;

  const std::string& path() const { return !text.empty() ? text : !jsonl.empty() ? jsonl : shards; }
};

struct TokenizerTrainOptions {
  std::string kind = "bpe";
  int vocab_size = 4096;
  bool operator==(const TokenizerTrainOptions&) const = default;
};

// Exactly one of train, file, bytes; none with model.from: the tokenizer of that model.
struct TokenizerOptions {
  std::optional<TokenizerTrainOptions> train;
  std::optional<std::string> file;  // absolute once resolved
  bool bytes = false;
  bool operator==(const TokenizerOptions&) const = default;
};

struct DataOptions {
  std::vector<SourceOptions> train;
  std::vector<SourceOptions> validation;  // named sets, each logged by its name
  double validation_fraction = 0.0;       // of the documents of train, by a hash of the document
  TokenizerOptions tokenizer;
  int context = 256;
  bool mask_documents = false;
  std::string overlong = "truncate";  // truncate drop error: of examples longer than a row
  std::string cache;                  // folder of tokenised sources; "" is `auto` in the file
  bool operator==(const DataOptions&) const = default;
};

struct ScheduleOptions {
  std::string name = "constant";  // constant linear cosine wsd inverse_sqrt
  int64_t warmup = 0;             // steps
  std::optional<int64_t> decay;   // steps; null: linear, cosine: from the warm-up to the end; wsd: the last tenth
  double final = 0.0;             // fraction of lr that is left at the end of the decay
  bool operator==(const ScheduleOptions&) const = default;
};

struct OptimOptions {
  std::string name = "adamw";  // adamw muon sgd
  double lr = 1e-3;
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;                                  // sgd: 0
  std::vector<std::string> decay_roles = {"matrix", "head"};  // roles of parameters that weight_decay acts on
  double momentum = 0.95;                                     // muon; sgd: 0.9
  bool nesterov = true;                                       // muon; sgd: false
  int ns_steps = 5;                                           // muon
  std::string adjust_lr_fn = "original";                      // muon: original match_rms_adamw
  std::optional<double> adamw_lr;                             // muon: lr of what AdamW updates; null: lr
  double clip = 1.0;                                          // largest global gradient norm; 0: off
  double z_loss = 0.0;                                        // coefficient; 0: off
  double ema = 0.0;                                           // decay of the averaged weights; 0: off
  ScheduleOptions schedule;
  bool operator==(const OptimOptions&) const = default;
};

// A model with a lightning indexer: what a stage asks of it.
struct IndexerOptions {
  std::string mode = "sparse";  // dense warmup sparse
  std::string train = "auto";   // auto all model indexer; auto: by the mode (all for sparse)
  std::optional<int64_t> topk;  // null: the model's index_topk
  double loss_coef = 1.0;
  std::optional<double> lr;  // null: optim.lr; its schedule is that of the stage
  double clip = 1.0;         // largest norm of the indexer's gradient; 0: off
  int64_t sinks = 0, window = 0;
  bool operator==(const IndexerOptions&) const = default;
};

// A model with experts: what keeps their load even.
struct ExpertsOptions {
  double bias_update_speed = 0.001;  // of the routing bias, where the model has one; 0: off
  double sequence_aux_loss = 0;      // coefficient; 0: off
  double router_z_loss = 0;          // coefficient; 0: off
  double capacity_factor = 0;        // 0: no token is dropped
  bool operator==(const ExpertsOptions&) const = default;
};

struct SpikeOptions {
  std::string action = "none";  // none skip stop
  double factor = 3.0;          // a spike: loss > factor * median of the last `window` losses
  int window = 100;
  bool operator==(const SpikeOptions&) const = default;
};

struct SampleOptions {
  int64_t every = 0;  // steps; 0: off
  std::string prompt;
  int tokens = 64;
  double temperature = 0.8;
  bool operator==(const SampleOptions&) const = default;
};

struct TrainOptions {
  // The run ends at the first rule that is met; at least one is given, or `stages`.
  std::optional<int64_t> steps, tokens;
  std::optional<double> epochs, minutes;
  int batch = 32;                     // sequences a step, over all ranks
  int micro_batch = 0;                // sequences at once; in the file 0 is `auto`; resolved by load()
  int lanes = 0;                      // power of two; in the file 0 is `auto`; resolved by load()
  int threads = 0;                    // 0: auto
  std::string precision = "float32";  // float32 bf16-mixed bf16
  std::string device = "auto";        // auto cpu cuda
  std::string kernels = "fast";       // fast aten reference
  bool activation_checkpointing = false;
  std::optional<double>
      mtp_loss_scaling_factor;        // of modules that predict further tokens; null: 0.1 where there are some
  std::string on_nonfinite = "stop";  // stop skip
  SpikeOptions on_spike;
  int64_t log_every = 10;  // steps between lines on the console; the journal has every step
  SampleOptions sample;
  bool operator==(const TrainOptions&) const = default;
};

// `keep: all`, or a rule: what any part of it names is kept.
struct KeepOptions {
  bool all = true;
  int last = 1;       // the newest N
  int64_t every = 0;  // steps that are a multiple of it; 0: none
  bool best = false;  // the one with the lowest validation loss
  bool operator==(const KeepOptions&) const = default;
};

struct CheckpointOptions {
  int64_t every = 500;      // 0: off
  bool log_spaced = false;  // also at steps 0, 1, 2, 4, 8, ...
  std::vector<int64_t> at;  // also at these steps
  bool at_end = true;
  bool on_event = false;  // also at a step with an event: a spike, a skipped update
  KeepOptions keep;
  bool async = true;
  int64_t digest_every = 1;  // steps between digests in the journal; stored steps have theirs
  bool operator==(const CheckpointOptions&) const = default;
};

// Weights over time: RUN/trajectory.
struct TrajectoryOptions {
  int64_t every = 0;        // 0: off
  bool log_spaced = false;  // also at steps 0, 1, 2, 4, 8, ...
  std::vector<int64_t> at;  // also at these steps
  std::string dtype = "bfloat16";
  std::string codec = "plain";
  std::vector<std::string> tensors = {"*"};  // names or patterns of names, as model.safetensors has them
  bool operator==(const TrajectoryOptions&) const = default;
};

struct EvalOptions {
  int64_t every = 0;   // steps; 0: at the end alone
  int sequences = 64;  // of each validation set
  bool operator==(const EvalOptions&) const = default;
};

struct ParallelOptions {
  int data = 0;  // data-parallel ranks; 0: auto, all there are
  int zero = 0;  // 1: optimizer state sharded over the ranks
  bool operator==(const ParallelOptions&) const = default;
};

struct MetricsOptions {
  bool tensorboard = true;
  bool operator==(const MetricsOptions&) const = default;
};

}  // namespace cairn::config
