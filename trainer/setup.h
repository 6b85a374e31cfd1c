// From a RunConfig to what the loop works with: tokenizer, model, data, optimizer settings.
#pragma once

#include <filesystem>
#include <memory>

#include "models/decoder_config.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "trainer/config/run_config.h"
#include "trainer/data/dataset.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/step.h"

namespace cairn {

using TokenizerPtr = std::shared_ptr<const data::Tokenizer>;

// Where a run that starts from weights (model.from) finds shape and tokenizer of its model: in the newest checkpoint of
// its own, where `run` has one, since a run needs the model that it came from for its start alone; else in that model's
// folder. Throws config::ConfigError where that is not there.
std::filesystem::path origin_folder(const config::RunConfig& config, const std::filesystem::path& run = {});

// The tokenizer that `data.tokenizer` describes; one that is trained sees the training part of the first stage's
// sources and is kept in the cache of the data. `run`: the run's folder where it was started before.
TokenizerPtr make_tokenizer(const config::RunConfig& config, const std::filesystem::path& run = {});

// The decoder of the `model` section. vocab_size is the tokenizer's where the section has none. A mistake ends in
// config::ConfigError with file, line and key. `run` as above.
models::DecoderConfig make_decoder_config(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                                          const std::filesystem::path& run = {});

// The data of all stages, opened. `steps` of the last stage may be unknown (-1).
std::unique_ptr<data::Dataset> make_dataset(const config::RunConfig& config, TokenizerPtr tokenizer,
                                            const data::ProgressCallback& progress);

// The number of the last step; empty where only the clock ends the run.
std::optional<int64_t> last_step(const config::RunConfig& config, const data::Dataset& data);

// Checks what hangs on the length of the run (warm-up and decay fit); throws config::ConfigError.
void check_schedules(const config::RunConfig& config, std::optional<int64_t> last);

// Refuses a train.sample.prompt that leaves no room in the model's context; throws config::ConfigError.
void check_samples(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                   const models::DecoderConfig& decoder);

// What is allowed and probably not meant: a line each, to be said at the start. `last`: the run's last step.
std::vector<std::string> doubtful_settings(const config::RunConfig& config, const data::Tokenizer& tokenizer,
                                           std::optional<int64_t> last);

optim::OptimizerOptions optimizer_options(const config::Stage& stage);
// Learning rate of step n of the run.
double learning_rate(const config::Stage& stage, int64_t step, std::optional<int64_t> last);
// What layers with an indexer are asked for in a stage.
models::IndexerPass indexer_pass(const config::Stage& stage);
// Throws config::ConfigError where the run has settings of an indexer and the model none, or more keys that are always
// chosen than there are to choose.
void check_indexer(const config::RunConfig& config, const models::DecoderConfig& decoder);

// Everything train_step wants for step n, but for the spike threshold, which hangs on the losses before.
// Throws config::ConfigError where a stage has settings of experts and the model has none.
void check_experts(const config::RunConfig& config, const models::DecoderConfig& decoder);

// Throws config::ConfigError where a stage weighs the loss of modules that predict further tokens and the model has
// none, or has more of them than a sequence has tokens to predict.
void check_modules(const config::RunConfig& config, const models::DecoderConfig& decoder);

StepSettings step_settings(const config::RunConfig& config, const config::Stage& stage, int64_t step,
                           std::optional<int64_t> last);

// float32 and bf16-mixed keep float32 weights.
at::ScalarType weight_type(const std::string& precision);
at::ScalarType product_type(const std::string& precision);

}  // namespace cairn
