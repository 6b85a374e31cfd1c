// Norm of the gradient of the step's mean loss before clipping: of everything, of each block, of each tensor on disk.
#include "trainer/probes/probe.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

class GradNorm : public Probe {
 public:
  using Probe::Probe;
  void gradients(State& state, const StepResult&, ProbeResults& results) override {
    for (const auto& weights : named_weights(state.model()))
      results.add(weights.name, std::sqrt(squared_norm(state.gradient(), weights)));
  }
};

}  // namespace

const ProbeKind grad_norm_probe{
    "grad_norm", "norm of the step's gradient before clipping: whole, each layer, each tensor",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<GradNorm>(options); }};

}  // namespace cairn
