// Cosine between the gradients of successive steps, n-1 and n, before clipping. The first step that is seen has none.
// Memory: one gradient.
#include "trainer/probes/probe.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

class GradCosine : public Probe {
 public:
  using Probe::Probe;
  // The step before a measured one is kept.
  bool wants(int64_t step) const override { return Probe::wants(step) || Probe::wants(step + 1); }

  void gradients(State& state, const StepResult&, ProbeResults& results) override {
    const at::NoGradGuard no_grad;
    const at::Tensor& now = state.gradient();
    const int64_t step = results.step;
    if (Probe::wants(step) && kept_step_ == step - 1) {
      for (const auto& weights : named_weights(state.model())) {
        const double norms = std::sqrt(squared_norm(now, weights) * squared_norm(kept_, weights));
        if (norms > 0) results.add(weights.name, dot(now, kept_, weights) / norms);
      }
    }
    if (!Probe::wants(step + 1)) return;
    if (!kept_.defined()) kept_ = at::empty_like(now);
    kept_.copy_(now);
    kept_step_ = step;
  }

 private:
  at::Tensor kept_;  // float32 [flat], the gradient of kept_step_
  int64_t kept_step_ = -1;
};

}  // namespace

const ProbeKind grad_cosine_probe{
    "grad_cosine", "cosine between the gradients of this step and the one before: whole, each layer, each tensor",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<GradCosine>(options); }};

}  // namespace cairn
