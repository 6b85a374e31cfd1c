#include "trainer/rl/kl.h"

#include "models/kernels/check.h"
#include "trainer/rl/names.h"

namespace cairn::rl {
namespace {

Kl k1(double logp, double ref_logp) { return {logp - ref_logp, 1}; }
Kl k2(double logp, double ref_logp) {
  const double log_x = ref_logp - logp;
  return {0.5 * log_x * log_x, -log_x};
}
Kl k3(double logp, double ref_logp) {
  const double log_x = ref_logp - logp, x_minus_1 = std::expm1(log_x);
  return {x_minus_1 - log_x, -x_minus_1};
}

const std::map<std::string, KlEstimator> kEstimators = {{"k1", k1}, {"k2", k2}, {"k3", k3}};

}  // namespace

KlEstimator find_kl_estimator(const std::string& name) { return find_name(kEstimators, "kl_estimator", name); }

at::Tensor kl_per_token(const std::string& estimator, const at::Tensor& logprobs, const at::Tensor& ref_logprobs,
                        const at::Tensor& mask) {
  const KlEstimator kl = find_kl_estimator(estimator);
  const at::IntArrayRef shape = logprobs.sizes();
  kernels::check_floats(logprobs, shape, "kl", "logprobs");
  kernels::check_floats(ref_logprobs, shape, "kl", "ref_logprobs");
  kernels::check_tensor(mask, at::kBool, shape, "kl", "mask");
  at::Tensor out = at::zeros(shape, at::kFloat);
  const float *logp = logprobs.const_data_ptr<float>(), *ref = ref_logprobs.const_data_ptr<float>();
  const bool* counts = mask.const_data_ptr<bool>();
  float* value = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i) {
    if (counts[i]) value[i] = static_cast<float>(kl(logp[i], ref[i]).value);
  }
  return out;
}

}  // namespace cairn::rl
