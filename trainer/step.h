// One optimizer step as a pure function of (state, n, data, settings).
#pragma once

#include <functional>

#include "models/layers/measured.h"
#include "trainer/data/dataset.h"
#include "trainer/state.h"

namespace cairn {

struct StepSettings {
  int64_t batch = 32;           // sequences of the step, over all ranks
  int64_t micro_batch = 8;      // sequences at once
  int lanes = 4;                // over all ranks
  double lr = 1e-3;             // of this step
  double clip = 1.0;            // 0: off
  bool trains_model = true;     // false: no gradient but the indexer's is computed
  bool trains_indexer = false;  // likewise, where the model has one
  double indexer_lr = 1e-3, indexer_clip = 1.0;
  models::IndexerPass indexer;
  models::ExpertsPass experts;   // its `balance` is filled by the step
  double bias_update_speed = 0;  // of routing biases
  double z_loss = 0;
  double mtp_loss_scaling_factor = 0.1;  // of modules that predict further tokens, where the model has some
  double dropout = 0;
  uint64_t dropout_seed = 0;
  at::ScalarType products = at::kFloat;
  bool reference = false;      // plain twins instead of kernels
  bool aten = false;           // no hand-written kernels: what a GPU does, through LibTorch's operators alone
  double skip_loss_above = 0;  // 0: off; else a step whose loss is higher leaves the state as it was
};

struct StepResult {
  double loss = 0;                          // nats a target token, over the whole batch
  double z_loss = 0;                        // mean of log^2 Z times its coefficient
  double accuracy = 0;                      // share of target tokens that were the argmax
  std::optional<double> mtp_loss;           // mean over the modules of their nats a target token of their own
  double grad_norm = 0;                     // before clipping
  std::optional<double> indexer_grad_norm;  // where the indexer trains; likewise
  models::Measured measured;                // of the whole batch
  int64_t tokens = 0;                       // inputs of the whole batch
  int64_t targets = 0;
  bool finite = true;
  bool updated = true;  // false: the update was skipped
};

// What a model needs to know of rows of a batch. The tensors copy the batch's numbers.
struct ModelInput {
  at::Tensor ids, targets;  // int32 [N]
  models::Pass pass;
};

// Where a step's sequences come from: any slice of the batch, and what is known of all of it.
struct StepData {
  int64_t context = 0;
  int64_t targets = 0;     // target tokens of the whole batch: every gradient is divided by it once
  int64_t rows_count = 0;  // tokens of the whole batch
  int64_t queries = 0;     // those of them that are not the first of their document
  std::function<data::Batch(int64_t first, int64_t count)> rows;
  // Where the loss is another than that of the targets: of the rows that `input` holds, with the whole backward pass;
  // its `nll` is this micro-batch's share of `targets` times the step's loss.
  std::function<models::Loss(models::Decoder& model, const ModelInput& input, int64_t first, int64_t count)> loss;
};
// The batch of step n.
StepData step_data(const data::Dataset& data, int64_t n);

// Looks on while a step is made, and changes not a bit of the state.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // state n-1.
  virtual void before(State& state, const StepData& data, const StepSettings& settings) {}
  // The gradients of the whole batch, before clipping; with ZeRO-1 only those that this rank owns.
  virtual void gradients(State& state, const StepResult& result) {}
  // state n.
  virtual void after(State& state, const StepData& data, const StepSettings& settings, const StepResult& result) {}
};

// Turns state n-1 into state n, n = state.step + 1. Collective over the ranks of the state's world.
StepResult train_step(State& state, const StepData& data, const StepSettings& settings,
                      StepObserver* observer = nullptr);

// DeepSeek-V3's balancing without a loss: moves every expert's routing bias by `speed`, up where fewer tokens than the
// mean chose it, down where more did. `measured`: counts of the global batch.
void move_routing_biases(models::Decoder& model, const models::Measured& measured, double speed);

ModelInput model_input(const data::Batch& batch);

}  // namespace cairn
