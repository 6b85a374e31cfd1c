#include "trainer/analysis/predictions.h"

#include "trainer/step.h"

namespace cairn::analysis {

double mean_nll(const models::Decoder& model, const FixedText& text) {
  double sum = 0;
  for (const data::Batch& batch : text.batches) {
    const ModelInput input = model_input(batch);
    sum += model.loss(input.ids, input.targets, input.pass, 1.0, 0, false).nll;
  }
  return sum / static_cast<double>(text.targets);
}

Predictions predict(const models::Decoder& model, const data::Batch& batch) {
  constexpr int64_t kRows = 256;  // of logits at a time
  at::NoGradGuard no_grad;
  const ModelInput input = model_input(batch);
  const at::Tensor hidden = model.hidden(input.ids, input.pass);  // [N, C]
  Predictions result;
  for (int64_t first = 0; first < hidden.size(0); first += kRows) {
    const int64_t count = std::min(kRows, hidden.size(0) - first);
    const at::Tensor logits = model.logits(hidden.narrow(0, first, count), input.pass).to(at::kFloat);  // [n, V]
    const at::Tensor targets = input.targets.narrow(0, first, count).to(at::kLong);
    const at::Tensor log_z = at::logsumexp(logits.to(at::kDouble), 1);
    const at::Tensor of_target = logits.gather(1, targets.clamp_min(0).unsqueeze(1)).squeeze(1).to(at::kDouble);
    const at::Tensor nll = (log_z - of_target).contiguous(), argmax = logits.argmax(1).contiguous();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t target = targets.data_ptr<int64_t>()[r];
      if (target < 0) continue;
      result.nll.push_back(nll.data_ptr<double>()[r]);
      result.is_argmax.push_back(argmax.data_ptr<int64_t>()[r] == target);
    }
  }
  return result;
}

void interpolate(models::Decoder& to, const models::Decoder& a, const models::Decoder& b, double t) {
  at::NoGradGuard no_grad;
  to.parameters().flat().copy_(a.parameters().flat() * (1 - t) + b.parameters().flat() * t);
}

}  // namespace cairn::analysis
