// The load of experts on a fixed text: tokens of each expert, as a multiple of the even share, and the load violation,
// (max - mean) / mean.
#include "models/layers/measured.h"
#include "trainer/analysis/metrics.h"
#include "trainer/model_io.h"
#include "trainer/step.h"

namespace cairn::analysis {
namespace {

void refuse_dense(const States& states) {
  const auto config = read_model_config(states[0].folder.string());
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
    if (config.contains(key) && config.at(key).is_number() && config.at(key).get<double>() > 1) return;
  throw std::invalid_argument(
      fmt::format("{} has no experts (config.json: no num_experts, num_local_experts or "
                  "n_routed_experts above 1), so there is no load to measure",
                  states[0].address));
}

Findings load(const States& states, size_t i) {
  const auto model = states.model(i);
  models::Measured measured;
  const at::NoGradGuard no_grad;
  for (const data::Batch& batch : states.text().batches) {
    ModelInput input = model_input(batch);
    input.pass.measured = &measured;
    model->hidden(input.ids, input.pass);
  }
  Findings findings;
  for (const auto& [block, counts] : measured.experts) {
    const std::string layer = fmt::format("layer.{}", block);
    const int64_t* count = counts.const_data_ptr<int64_t>();
    const double mean = static_cast<double>(counts.sum().item<int64_t>()) / static_cast<double>(counts.numel());
    std::vector<double> shares;
    for (int64_t e = 0; e < counts.numel(); ++e) shares.push_back(static_cast<double>(count[e]) / mean);
    findings.push_back(number("expert_violation", *std::max_element(shares.begin(), shares.end()) - 1, layer));
    findings.push_back(array("expert_load", {counts.numel()}, std::move(shares), layer));
  }
  return findings;
}

}  // namespace

Metric experts_metric() {
  return {
      .name = "expert_load",
      .help =
          "models with experts: tokens of each expert on a fixed text over their mean; expert_violation: the largest "
          "of them, minus 1",
      .kind = Kind::model,
      .series = {"expert_load", "expert_violation"},
      .parameters = [](const States& s) { return s.text().key; },
      .check =
          [](const States& s) {
            refuse_dense(s);
            s.text();
          },
      .measure = load};
}

}  // namespace cairn::analysis
