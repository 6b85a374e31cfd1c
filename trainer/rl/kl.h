// Estimators of KL(policy || reference) from the log-probabilities of sampled tokens (Schulman 2020, "Approximating KL
// divergence"). With x = reference / policy: k1 = -log x, k2 = log^2(x) / 2, k3 = x - 1 - log x. On the policy's own
// samples k1 and k3 are unbiased, k2 is not; as a loss k2 has the gradient of the KL in expectation, k1's is zero and
// k3's is that of the KL the other way round. Weighted by a differentiated ratio, k1 and k3 have the KL's own gradient.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace cairn::rl {

struct Kl {
  double value = 0;  // nats
  double dlogp = 0;  // its derivative by the policy's log-probability
};
using KlEstimator = Kl (*)(double logp, double ref_logp);

// k1, k2 or k3; throws std::invalid_argument on another name.
KlEstimator find_kl_estimator(const std::string& name);

// The estimate at each token, for a reward: a constant, from the log-probabilities before the step. All [B, T],
// float32, mask bool; 0 where the mask is false. Throws std::invalid_argument where shapes or types do not fit.
at::Tensor kl_per_token(const std::string& estimator, const at::Tensor& logprobs, const at::Tensor& ref_logprobs,
                        const at::Tensor& mask);

}  // namespace cairn::rl
