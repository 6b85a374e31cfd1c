// The gradient noise scale of McCandlish et al. 2018 (appendix A.1): B_simple = tr Σ / |G|², Σ the covariance of a
// sequence's gradient, G the true gradient, both estimated without bias from two batch sizes, that of the step (B) and
// that of its micro-batches (b):
//   |G|² = (B |g_B|² - b mean|g_b|²) / (B - b)      "gradient_squared"
//   tr Σ = (mean|g_b|² - |g_B|²) / (1/b - 1/B)      "variance_trace"
//   B_simple = tr Σ / |G|², in sequences            "" (NaN where the estimate of |G|² is not positive)
// g is the gradient of the mean loss over the targets of its sequences, with the dropout of the step and without the
// auxiliary losses of experts and of modules that predict further tokens; where the step's own gradient has those, or none (an indexer warms up), g_B is made here
// as well. From state n-1.
// One step's estimates are noisy: average |G|² and tr Σ over steps before dividing, as the paper does. The cost is one
// more forward and backward pass, and a copy of weights and gradient.
#include "trainer/probes/pieces.h"
#include "trainer/probes/probe.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

class NoiseScale : public Probe {
 public:
  using Probe::Probe;

  void before(State& state, const StepData& data, const StepSettings& settings, ProbeResults&) override {
    if (settings.batch < 2) {
      throw std::invalid_argument(
          "probe noise_scale: train.batch: found 1, expected at least 2: the noise is told from two batch sizes");
    }
    models::Decoder& copy = refresh(copy_, state.model(), state.model().parameters().flat().scalar_type());
    if (!gradient_.defined()) gradient_ = at::zeros_like(copy.parameters().flat());
    copy.parameters().bind_gradients(gradient_);
    const NamedWeights all{"", {{0, gradient_.numel()}}};

    rows_ = std::min(settings.micro_batch, settings.batch / 2);
    const int64_t parts = settings.batch / rows_;
    own_ = other_gradient(state.model().config(), settings);
    batch_ = own_ ? parts * rows_ : settings.batch;
    if (own_) whole_ = at::zeros_like(gradient_, gradient_.options().dtype(at::kFloat));
    double sum = 0, all_targets = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const data::Batch batch = data.rows(part * rows_, rows_);
      ModelInput input = measuring_input(batch, settings);
      input.pass.dropout = settings.dropout;
      input.pass.dropout_seed = settings.dropout_seed;
      input.pass.step = state.step + 1;
      input.pass.first_row = part * rows_ * batch.context;
      const double targets = std::max<int64_t>(batch.target_count(), 1);
      copy.loss(input.ids, input.targets, input.pass, 1 / targets, settings.z_loss, true);
      sum += squared_norm(gradient_, all);
      if (own_) whole_.add_(gradient_, targets), all_targets += targets;
      gradient_.zero_();
    }
    small_ = sum / static_cast<double>(parts);
    if (own_) large_ = squared_norm(whole_, all) / (all_targets * all_targets);
    whole_ = at::Tensor();
  }

  void gradients(State&, const StepResult& result, ProbeResults& results) override {
    const double B = batch_, b = rows_, large = own_ ? large_ : result.grad_norm * result.grad_norm;
    const double gradient = (B * large - b * small_) / (B - b), trace = (small_ - large) / (1 / b - 1 / B);
    results.add("gradient_squared", gradient);
    results.add("variance_trace", trace);
    results.add("", gradient > 0 ? trace / gradient : std::nan(""));
  }

 private:
  // Is the step's gradient another than that of the language model's loss?
  static bool other_gradient(const models::DecoderConfig& config, const StepSettings& settings) {
    if (!settings.trains_model || !config.mtp.empty()) return true;
    const bool losses = settings.experts.sequence_aux_loss > 0 || settings.experts.router_z_loss > 0;
    return std::any_of(config.blocks.begin(), config.blocks.end(), [&](const models::BlockConfig& block) {
      return block.experts && (losses || block.experts->router_aux_loss_coef > 0);
    });
  }

  std::unique_ptr<models::Decoder> copy_;
  at::Tensor gradient_;  // [flat], of the copy
  at::Tensor whole_;     // [flat], while own_
  bool own_ = false;
  double large_ = 0;  // |g_B|², while own_
  int64_t batch_ = 0, rows_ = 0;
  double small_ = 0;  // mean |g_b|²
};

}  // namespace

const ProbeKind noise_scale_probe{
    "noise_scale", "gradient noise scale B_simple in sequences, and the estimates of |G|² and tr Σ that it is made of",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<NoiseScale>(options); }};

}  // namespace cairn
