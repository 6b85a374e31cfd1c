#include "trainer/objectives/preference/singles.h"

#include <algorithm>

#include "models/kernels/check.h"
#include "trainer/objectives/preference/pair_terms.h"
#include "trainer/objectives/preference/single_table.h"
#include "trainer/rl/names.h"

namespace cairn::preference {
namespace {

constexpr const char* kPlace = "preference loss";

// 1 - sigmoid(+-beta (log-ratio - KL)): plus where the completion is desirable.
SingleTerm kto(double log_ratio, bool desirable, double kl, double beta) {
  const double sign = desirable ? 1 : -1, s = sigmoid(sign * beta * (log_ratio - kl));
  return {1 - s, -sign * beta * s * (1 - s)};
}
// The same without the KL (D'Oosterlinck 2024, eq. 7, unpaired).
SingleTerm apo_zero_unpaired(double log_ratio, bool desirable, double, double beta) {
  return kto(log_ratio, desirable, 0, beta);
}

}  // namespace

const std::map<std::string, SingleLoss>& single_losses() {
  static const std::map<std::string, SingleLoss> table = {{"kto", {kto, true}},
                                                          {"apo_zero_unpaired", {apo_zero_unpaired, false}}};
  return table;
}

SingleOutput single_loss(const SingleBatch& batch, int64_t completions, double kl, const Options& options) {
  check(options);
  const SingleLoss& loss = rl::find_name(single_losses(), "loss_type", options.loss_type.at(0));
  const at::IntArrayRef shape = batch.logps.sizes();
  if (shape.size() != 1)
    throw std::invalid_argument(fmt::format("[{}] logps: expected [N], got {}", kPlace, shape.vec()));
  kernels::check_floats(batch.logps, shape, kPlace, "logps");
  kernels::check_floats(batch.ref_logps, shape, kPlace, "ref_logps");
  kernels::check_tensor(batch.desirable, at::kBool, shape, kPlace, "desirable");
  if (completions < shape[0]) {
    throw std::invalid_argument(
        fmt::format("[{}] the step has {} completions, this micro-batch alone {}", kPlace, completions, shape[0]));
  }
  const double weight = options.loss_weights.empty() ? 1 : options.loss_weights[0];
  SingleOutput out{.dlogps = at::zeros(shape, at::kFloat)};
  double rewards[2] = {}, logps[2] = {}, counts[2] = {};
  for (int64_t i = 0; i < shape[0]; ++i) {
    const bool desirable = batch.desirable.const_data_ptr<bool>()[i];
    const double logp = batch.logps.const_data_ptr<float>()[i],
                 ratio = logp - batch.ref_logps.const_data_ptr<float>()[i];
    const double scale = weight * (desirable ? options.desirable_weight : options.undesirable_weight) /
                         static_cast<double>(std::max<int64_t>(completions, 1));
    const SingleTerm term = loss.term(ratio, desirable, kl, options.beta);
    out.loss += scale * term.loss;
    out.dlogps.mutable_data_ptr<float>()[i] = static_cast<float>(scale * term.derivative);
    rewards[desirable] += options.beta * ratio, logps[desirable] += logp, ++counts[desirable];
  }
  // TRL's rewards/margins is the difference of the two means of the step: whoever has them all subtracts.
  out.metrics.mean("rewards/chosen", rewards[1], counts[1]);
  out.metrics.mean("rewards/rejected", rewards[0], counts[0]);
  out.metrics.mean("logps/chosen", logps[1], counts[1]);
  out.metrics.mean("logps/rejected", logps[0], counts[0]);
  out.metrics.mean("kl", loss.kl ? kl : 0, 1);
  return out;
}

double kto_kl(const at::Tensor& logps, const at::Tensor& ref_logps) {
  const at::IntArrayRef shape = logps.sizes();
  kernels::check_floats(logps, shape, kPlace, "logps of mismatched pairs");
  kernels::check_floats(ref_logps, shape, kPlace, "ref_logps of mismatched pairs");
  if (logps.numel() == 0)
    throw std::invalid_argument(fmt::format("[{}] no mismatched pairs to estimate the KL", kPlace));
  double sum = 0;
  for (int64_t i = 0; i < logps.numel(); ++i)
    sum += static_cast<double>(logps.const_data_ptr<float>()[i]) - ref_logps.const_data_ptr<float>()[i];
  return std::max(sum / static_cast<double>(logps.numel()), 0.0);
}

}  // namespace cairn::preference
