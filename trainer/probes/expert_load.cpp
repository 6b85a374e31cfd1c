// Tokens that each expert gets, as a multiple of the even share: 1 where the load is balanced, 0 where the expert is
// dead; "layer.I" for each block with experts, from state n-1. Nothing of a model that has none.
#include "trainer/probes/probe.h"

namespace cairn {
namespace {

class Counts : public models::Capture {
 public:
  void experts(int64_t block, const at::Tensor& chosen, int64_t num_experts) override {
    const at::Tensor rows = at::bincount(chosen.reshape({-1}).to(at::kLong), {}, num_experts).cpu();
    at::Tensor& sum = counts_[block];
    sum = sum.defined() ? sum + rows : rows;
  }
  std::map<int64_t, at::Tensor> take() { return std::exchange(counts_, {}); }

 private:
  std::map<int64_t, at::Tensor> counts_;
};

class ExpertLoad : public Probe {
 public:
  using Probe::Probe;
  models::Capture* inside() override { return &counts_; }
  void before(State&, const StepData&, const StepSettings&, ProbeResults& results) override {
    for (const auto& [block, counts] : counts_.take()) {
      const int64_t* count = counts.const_data_ptr<int64_t>();
      const double mean = static_cast<double>(counts.sum().item<int64_t>()) / static_cast<double>(counts.numel());
      std::vector<double> shares;
      for (int64_t e = 0; e < counts.numel(); ++e) shares.push_back(static_cast<double>(count[e]) / mean);
      results.add(fmt::format("layer.{}", block), {counts.numel()}, std::move(shares));
    }
  }

 private:
  Counts counts_;
};

}  // namespace

const ProbeKind expert_load_probe{
    "expert_load", "tokens of each expert over their mean, a value an expert, for each layer that has experts",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<ExpertLoad>(options); }};

}  // namespace cairn
