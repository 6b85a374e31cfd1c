// Entropy of the attention probabilities, -Σ p ln p in nats, of every head: the mean over all rows looked at (the first
// row of a document, which sees itself alone, has 0), from state n-1. Soft-caps, windows and document masks count.
#include "trainer/probes/heads.h"

namespace cairn {
namespace {

at::Tensor entropy(const at::Tensor& probabilities) {
  return at::special_entr(probabilities).sum(-1).squeeze(0);  // [H, T]
}

class AttentionEntropy : public Probe {
 public:
  using Probe::Probe;
  models::Capture* inside() override { return &heads_; }
  void before(State&, const StepData&, const StepSettings&, ProbeResults& results) override { heads_.report(results); }

 private:
  Heads heads_{entropy};
};

}  // namespace

const ProbeKind attention_entropy_probe{
    "attention_entropy", "entropy of the attention probabilities in nats, a value a head, for each layer",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<AttentionEntropy>(options); }};

}  // namespace cairn
