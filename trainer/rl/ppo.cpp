#include "trainer/rl/ppo.h"

#include <cmath>

#include "models/kernels/check.h"
#include "trainer/rl/estimators.h"

namespace cairn::rl {
namespace {

struct Next {
  double value = 0, advantage = 0;  // of the token after this one
};

}  // namespace

Gae gae(const at::Tensor& rewards, const at::Tensor& values, const at::Tensor& mask, double gamma, double lam) {
  const at::IntArrayRef shape = mask.sizes();
  kernels::check_tensor(mask, at::kBool, shape, "gae", "mask");
  kernels::check_floats(rewards, shape, "gae", "rewards");
  kernels::check_floats(values, shape, "gae", "values");
  Gae out{at::zeros(shape, at::kFloat), at::zeros(shape, at::kFloat)};
  const float *reward = rewards.const_data_ptr<float>(), *value = values.const_data_ptr<float>();
  const bool* counts = mask.const_data_ptr<bool>();
  const int64_t B = shape[0], T = shape[1];
  for (int64_t b = 0; b < B; ++b) {
    Next next;
    for (int64_t t = (b + 1) * T - 1; t >= b * T; --t) {
      if (!counts[t]) continue;
      const double delta = reward[t] + gamma * next.value - value[t];
      next = {value[t], delta + gamma * lam * next.advantage};
      out.advantages.mutable_data_ptr<float>()[t] = static_cast<float>(next.advantage);
      out.returns.mutable_data_ptr<float>()[t] = static_cast<float>(next.advantage + value[t]);
    }
  }
  return out;
}

// The estimator: advantages are whitened over the tokens of the batch, returns are not. The reward comes at the last
// token, the KL is taken off at each.
Estimate gae_advantages(const EstimatorInput& input) {
  kernels::check_floats(input.batch.values, {input.B, input.T}, "advantages", "values");
  std::vector<double> rewards = input.token_rewards();
  for (double& r : rewards) r = std::isnan(r) ? 0 : r;
  const at::Tensor token_rewards = at::tensor(rewards, at::kDouble).to(at::kFloat).view({input.B, input.T});
  const Gae g = gae(token_rewards, input.batch.values, input.batch.mask, input.options.gamma, input.options.lam);
  const float *a = g.advantages.const_data_ptr<float>(), *r = g.returns.const_data_ptr<float>();
  Estimate out{.advantages = {a, a + input.B * input.T}, .returns = {r, r + input.B * input.T}};
  whiten(input, out.advantages);
  return out;
}

ValueOutput value_loss(const at::Tensor& values, const at::Tensor& old_values, const at::Tensor& returns,
                       const at::Tensor& mask, int64_t tokens, const ValueOptions& options) {
  const at::IntArrayRef shape = mask.sizes();
  kernels::check_tensor(mask, at::kBool, shape, "value loss", "mask");
  kernels::check_floats(values, shape, "value loss", "values");
  kernels::check_floats(old_values, shape, "value loss", "old_values");
  kernels::check_floats(returns, shape, "value loss", "returns");
  ValueOutput out{.dvalues = at::zeros(shape, at::kFloat)};
  const double scale = options.vf_coef / static_cast<double>(std::max<int64_t>(tokens, 1));
  double sum = 0, clipped = 0, count = 0;
  for (int64_t i = 0; i < mask.numel(); ++i) {
    if (!mask.const_data_ptr<bool>()[i]) continue;
    const double value = values.const_data_ptr<float>()[i], old = old_values.const_data_ptr<float>()[i];
    const double moved = std::clamp(value, old - options.cliprange_value, old + options.cliprange_value);
    const double error = value - returns.const_data_ptr<float>()[i], bound = moved + (error - value);
    // Where clipping changes nothing both are one; where the bound is the greater it is a constant.
    const bool free = error * error >= bound * bound;
    sum += 0.5 * std::max(error * error, bound * bound);
    clipped += !free, ++count;
    out.dvalues.mutable_data_ptr<float>()[i] = static_cast<float>(free ? scale * error : 0);
  }
  out.loss = scale * sum;
  out.metrics.mean("loss/value", sum, count);
  out.metrics.mean("val/clipfrac", clipped, count);
  return out;
}

}  // namespace cairn::rl
