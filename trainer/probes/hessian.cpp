// The eigenvalue of largest magnitude of the Hessian of the step's mean loss (cross-entropy over the targets of the
// whole batch, without dropout and z-loss) at the weights of state n-1, by power iteration: v <- Hv / |Hv|, λ = v·Hv,
// until λ changes by less than a thousandth, or `hessian_iterations` are over. Hessian-vector products are exact
// derivatives of the plain twins, in float32 whatever the run's precision. The start vector is the same at every step.
// "" is λ, "iterations" how many there were, "converged" 1 or 0.
// Memory: a float32 copy of the weights, three vectors of that size, the graph of one micro-batch.
#include <numbers>

#include "models/kernels/ref/cross_entropy.h"
#include "models/random.h"
#include "trainer/probes/pieces.h"
#include "trainer/probes/probe.h"
#include "trainer/probes/tensors.h"

namespace cairn {
namespace {

constexpr double kChange = 1e-3;

// Leaves of a model in the order of the flat buffer, and where they lie in it (groups of parameters leave gaps).
struct Leaves {
  std::vector<at::Tensor> tensors;
  std::vector<int64_t> offsets;

  explicit Leaves(const models::Decoder& model) {
    std::map<int64_t, at::Tensor> by_offset;
    for (const auto& parameter : model.parameters().all()) {
      if (parameter.first_row == 0) by_offset[parameter.offset] = parameter.leaf;
    }
    for (const auto& [offset, leaf] : by_offset) offsets.push_back(offset), tensors.push_back(leaf);
  }
  at::Tensor part(const at::Tensor& flat, size_t i) const { return flat.narrow(0, offsets[i], tensors[i].numel()); }
};

// The sum of the losses of the targets times `scale`, through the plain twins.
at::Tensor twin_loss(const models::Decoder& model, const ModelInput& input, double scale) {
  const auto& config = model.config();
  const auto& parameters = model.parameters();
  const at::Tensor hidden = model.hidden(input.ids, input.pass);
  const at::Tensor head =
      parameters.at(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight").leaf;
  const at::Tensor bias = config.head_bias ? parameters.at("lm_head.bias").leaf : at::Tensor();
  return kernels::ref::linear_cross_entropy(hidden, head, bias, input.targets,
                                            {.scale = scale, .softcap = config.logit_softcap})
      .loss;
}

// Standard normal numbers of (seed, index).
at::Tensor start_vector(int64_t size, uint64_t seed) {
  const std::string stream = "hessian";
  const Philox random{seed, Purpose::probe, hash_name(stream.data(), stream.size())};
  at::Tensor v = at::empty({size}, at::kFloat);
  float* out = v.data_ptr<float>();
  for (int64_t i = 0; i < size; ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - random.uniform(2 * i)));
    out[i] = static_cast<float>(radius * std::cos(2 * std::numbers::pi * random.uniform(2 * i + 1)));
  }
  return v / v.norm();
}

class Hessian : public Probe {
 public:
  explicit Hessian(const ProbeOptions& options)
      : Probe(options), seed_(options.seed), limit_(options.hessian_iterations) {
    if (limit_ < 2) {
      throw std::invalid_argument(
          fmt::format("probe hessian: found a limit of {} iterations, expected at least 2", limit_));
    }
  }

  void before(State& state, const StepData& data, const StepSettings& settings, ProbeResults& results) override {
    models::Decoder& copy = refresh(copy_, state.model(), at::kFloat);
    if (!start_.defined())
      start_ = start_vector(copy.parameters().flat().numel(), seed_).to(copy.parameters().flat().device());
    at::Tensor v = start_;
    double eigenvalue = 0;
    int64_t iterations = 0;
    bool converged = false;
    while (!converged && iterations < limit_) {
      const at::Tensor product = hessian_times(copy, v, data, settings);
      const double last = eigenvalue, norm = product.to(at::kDouble).norm().item<double>();
      eigenvalue = (v.to(at::kDouble) * product.to(at::kDouble)).sum().item<double>();
      ++iterations;
      converged = norm == 0 || (iterations > 1 && std::abs(eigenvalue - last) < kChange * std::abs(eigenvalue));
      if (!std::isfinite(norm)) break;
      v = product / norm;
    }
    results.add("", eigenvalue);
    results.add("iterations", static_cast<double>(iterations));
    results.add("converged", converged ? 1 : 0);
  }

 private:
  // H v, flat float32.
  at::Tensor hessian_times(const models::Decoder& model, const at::Tensor& v, const StepData& data,
                           const StepSettings& settings) {
    const at::AutoGradMode with_gradients(true);
    const Leaves leaves(model);
    at::Tensor total = at::zeros_like(v);
    StepSettings plain = settings;
    plain.products = at::kFloat, plain.reference = true;
    for_pieces(data, plain, settings.batch, settings.micro_batch, [&](const ModelInput& input) {
      const at::Tensor loss = twin_loss(model, input, 1 / static_cast<double>(data.targets));
      const auto gradients = torch::autograd::grad({loss}, leaves.tensors, {}, true, true, true);
      at::Tensor along = at::zeros({}, v.options());
      for (size_t i = 0; i < gradients.size(); ++i) {
        if (gradients[i].defined() && gradients[i].requires_grad())
          along = along + (gradients[i] * leaves.part(v, i).view(gradients[i].sizes())).sum();
      }
      const auto products = torch::autograd::grad({along}, leaves.tensors, {}, false, false, true);
      for (size_t i = 0; i < products.size(); ++i) {
        if (products[i].defined()) leaves.part(total, i).add_(products[i].reshape({-1}));
      }
    });
    return total;
  }

  uint64_t seed_;
  int64_t limit_;
  std::unique_ptr<models::Decoder> copy_;  // float32
  at::Tensor start_;
};

}  // namespace

const ProbeKind hessian_probe{
    "hessian", "top eigenvalue of the Hessian of the step's mean loss, by power iteration",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<Hessian>(options); }};

}  // namespace cairn
