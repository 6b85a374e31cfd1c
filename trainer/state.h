// The state of a run (law 1): parameters, optimizer, moving average. state[n] = step(state[n - 1], n, config).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/digest.h"
#include "checkpoints/tensor.h"
#include "models/decoder.h"
#include "optim/ema.h"
#include "optim/optimizer.h"
#include "trainer/parallel/gradients.h"
#include "trainer/parallel/lane_tree.h"
#include "trainer/parallel/world.h"

namespace cairn {

// A tensor of the state under the name that the digest and the checkpoint use, or this rank's piece of it (ZeRO-1): its
// elements from first_index on, flat.
struct StateTensor {
  std::string name;
  at::Tensor tensor;
  int64_t first_index = 0;
  std::vector<int64_t> shape;  // of the whole
  bool everywhere = true;      // every rank holds all of it
};

// The tensors of a model as the digest takes them: parameters and buffers under the decoder's names.
std::vector<checkpoints::TensorView> weight_views(const models::Parameters& parameters);

class State {
 public:
  // Weights are uninitialised; everything lies on `device`. `zero`: 1 shards the optimizer over the ranks of `world`,
  // and `whole_matrices` lets no rank own a part of a matrix (Muon).
  State(models::DecoderConfig config, at::ScalarType dtype, parallel::World& world, int lanes, int zero,
        bool whole_matrices = false, at::Device device = at::kCPU);

  // Makes the optimizers of a stage, one for each group of parameters (and the moving average, where ema > 0); moments
  // of the same name carry over. A group that a stage does not train keeps its optimizer as it is.
  void set_optimizer(const optim::OptimizerOptions& options, double ema);

  models::Decoder& model() { return *model_; }
  const models::Decoder& model() const { return *model_; }
  optim::Optimizer& optimizer(models::Group group = models::Group::model) { return *optimizers_.at(group); }
  bool has(models::Group group) const { return optimizers_.contains(group); }
  // How many updates each group had, as state.json has it: a number where there is the one group, else by its name.
  nlohmann::ordered_json updates();
  void set_updates(const nlohmann::ordered_json& updates);
  optim::Ema* ema() { return ema_ ? &*ema_ : nullptr; }
  parallel::LaneTree& lanes() { return *lane_tree_; }
  parallel::Reducer& reducer() { return *reducer_; }
  parallel::World& world() { return world_; }
  at::Device device() const { return gradient_.device(); }
  // float32, laid out as the flat parameters: of the whole batch once a step's backward passes are done (with ZeRO-1
  // only in the parts that reducer().owned() names).
  const at::Tensor& gradient() const { return gradient_; }

  // Called after each micro-batch: brings bfloat16 gradients to the float32 sums; nothing to do for float32 weights.
  void collect_gradients();
  // Gradients are zero for the next step; `updated`: the optimizer has been over them and left zeros where it could.
  void clear_gradients(bool updated);
  // ZeRO-1: hands every rank's updated weights to all.
  void gather_weights();

  // Of the whole state, over all ranks: every rank gets the same. Collective.
  checkpoints::Digest digest();
  // Everything besides the weights that this rank holds, for a checkpoint: "optimizer.<name>", "ema.<name>". The ranks'
  // lists together hold every element. The tensors are the live ones, on the state's device.
  std::vector<StateTensor> extras();
  // Fills what extras() lists from `read(name)`, the whole tensor; throws std::runtime_error naming a tensor that is
  // missing or of another shape.
  void load_extras(const std::function<at::Tensor(const std::string&)>& read);

  int64_t step = 0;  // n of state[n]

 private:
  std::vector<optim::Parameter> owned_parameters(bool whole, std::optional<models::Group> group);
  std::vector<StateTensor> optimizer_tensors();

  parallel::World& world_;
  int zero_;
  std::unique_ptr<models::Decoder> model_;
  at::Tensor gradient_;       // float32 [flat]
  at::Tensor leaf_gradient_;  // what autograd adds into: gradient_ itself, or its bfloat16 twin
  std::unique_ptr<parallel::LaneTree> lane_tree_;
  std::unique_ptr<parallel::Reducer> reducer_;
  std::map<models::Group, std::unique_ptr<optim::Optimizer>> optimizers_;
  std::optional<optim::Ema> ema_;
};

// A contiguous CPU tensor as the checkpoints folder sees it.
checkpoints::TensorView view_of(const std::string& name, const at::Tensor& tensor);
// A copy of a view's bytes.
at::Tensor tensor_of(const checkpoints::TensorView& view);

}  // namespace cairn
