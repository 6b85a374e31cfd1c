// The load of experts: (max - mean) / mean of the tokens per expert.
#include "trainer/analysis/metrics.h"
#include "trainer/model_io.h"

namespace cairn::analysis {
namespace {

void refuse_dense(const States& states) {
  const auto config = read_model_config(states[0].folder.string());
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (config.contains(key) && config.at(key).is_number() && config.at(key).get<double>() > 1)
      throw std::invalid_argument(fmt::format("{} has {} experts ({}), and no family with experts can be run yet",
                                              states[0].address, config.at(key).dump(), key));
  }
  throw std::invalid_argument(
      fmt::format("{} has no experts (config.json: no num_experts, num_local_experts or "
                  "n_routed_experts above 1), so there is no load to measure",
                  states[0].address));
}

Findings never(const States&, size_t) { throw std::logic_error("experts: refused before"); }

}  // namespace

Metric experts_metric() {
  return {.name = "expert_load",
          .help = "models with experts: largest load over the mean, minus 1",
          .kind = Kind::model,
          .series = {"expert_load"},
          .check = refuse_dense,
          .measure = never};
}

}  // namespace cairn::analysis
