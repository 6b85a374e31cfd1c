// What PPO has beside its policy loss (that is loss_type dapo with advantages [B, T]): advantages from a critic, and
// the critic's loss.
#pragma once

#include <ATen/ATen.h>

#include "trainer/metrics/tally.h"

namespace cairn::rl {

// Generalized advantage estimation (Schulman 2015, eq. 16): A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma
// V_{t+1} - V_t, 0 beyond the last token; the return is A_t + V_t. rewards, values float32 [B, T], mask bool [B, T]:
// tokens outside it are passed over, as if they were not there. Throws std::invalid_argument where tensors do not fit.
struct Gae {
  at::Tensor advantages, returns;  // float32 [B, T], 0 outside the mask; not whitened
};
Gae gae(const at::Tensor& rewards, const at::Tensor& values, const at::Tensor& mask, double gamma, double lam);

struct ValueOptions {
  double cliprange_value = 0.2;  // a value may move this far from what it was before the step
  double vf_coef = 0.1;
};

struct ValueOutput {
  double loss = 0;     // this micro-batch's share
  at::Tensor dvalues;  // [B, T] float32
  Tally metrics;       // val/clipfrac, loss/value
};
// vf_coef times the mean over the tokens of the step of max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2) / 2
// (PPO's clipped value loss, as TRL's and verl's). Divides by: `tokens`, those of the step over all ranks. All [B, T],
// float32, mask bool. Throws std::invalid_argument where tensors do not fit.
ValueOutput value_loss(const at::Tensor& values, const at::Tensor& old_values, const at::Tensor& returns,
                       const at::Tensor& mask, int64_t tokens, const ValueOptions& options);

}  // namespace cairn::rl
