// What a step changes: the norm of a tensor's change over the norm it had before, ‖θ[n] - θ[n-1]‖ / ‖θ[n-1]‖. Tensors
// that were all zero have no ratio and are left out. Memory: one copy of the weights.
#include "trainer/probes/probe.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

class UpdateRatio : public Probe {
 public:
  using Probe::Probe;
  void before(State& state, const StepData&, const StepSettings&, ProbeResults&) override {
    const at::NoGradGuard no_grad;
    const at::Tensor weights = state.model().parameters().flat();
    if (!old_.defined()) old_ = at::empty(weights.sizes(), weights.options().dtype(at::kFloat));
    old_.copy_(weights);
  }
  void after(State& state, const StepData&, const StepSettings&, const StepResult&, ProbeResults& results) override {
    const at::NoGradGuard no_grad;
    const at::Tensor change = state.model().parameters().flat() - old_;
    for (const auto& weights : named_weights(state.model())) {
      if (const double norm = std::sqrt(squared_norm(old_, weights)); norm > 0)
        results.add(weights.name, std::sqrt(squared_norm(change, weights)) / norm);
    }
  }

 private:
  at::Tensor old_;  // float32 [flat]
};

}  // namespace

const ProbeKind update_ratio_probe{
    "update_ratio", "norm of the step's change over the norm of the weights before it: whole, each layer, each tensor",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<UpdateRatio>(options); }};

}  // namespace cairn
