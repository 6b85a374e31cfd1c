// What an indexer's choice S[t] of k keys holds of the attention that its layer would pay to all keys, a value a head:
// "layer.I" is the mean of the mass, Σ over s in S[t] of p[t, s]; "layer.I.recall" that sum over the sum that the k
// best keys of the head itself would hold. p is the softmax over all keys that the query sees, in the dense attention
// of the same queries and keys; over queries with more than k candidates, from state n-1. Nothing where all keys are
// read: the journal's index_recall tells of the warm-up.
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/sparse_attention.h"
#include "trainer/probes/heads.h"

namespace cairn {
namespace {

class Masses : public models::Capture {
 public:
  bool wants_attention() const override { return true; }
  void attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                 const kernels::AttentionOptions& options) override {
    if (!selected.defined()) return;
    Sum& sum = sums_[block];
    const int64_t length = q.size(0) / options.batch;
    kernels::AttentionOptions one = options;  // a sequence at a time: [T, T] of every head is held
    one.batch = 1;
    for (int64_t b = 0; b < options.batch; ++b) {
      const auto own = [&](const at::Tensor& rows) { return rows.narrow(0, b * length, length); };
      if (options.segments.defined()) one.segments = own(options.segments);
      const at::Tensor chosen = kernels::ref::selected_mask(own(selected), 1, length);                  // [1, T, T]
      const at::Tensor p = kernels::ref::attention_probabilities(own(q), own(k), one).to(at::kDouble);  // [1, H, T, T]
      const at::Tensor counts =
          candidates(length, one).to(p.device()).gt(chosen.sum(-1)).to(at::kDouble).unsqueeze(1);  // [1, 1, T]
      const at::Tensor mass = (p * chosen.unsqueeze(1)).sum(-1);                                   // [1, H, T]
      const at::Tensor best = std::get<0>(p.topk(std::min<int64_t>(selected.size(1), length), -1)).sum(-1);
      add(sum.mass, (mass * counts).sum(at::IntArrayRef{0, 2}));
      add(sum.best, (best * counts).sum(at::IntArrayRef{0, 2}));
      sum.queries += counts.sum().item<double>();
    }
  }

  void report(ProbeResults& results) {
    for (const auto& [block, sum] : std::exchange(sums_, {})) {
      if (sum.queries == 0) continue;
      put(results, fmt::format("layer.{}", block), sum.mass / sum.queries);
      put(results, fmt::format("layer.{}.recall", block), sum.mass / sum.best);
    }
  }

 private:
  struct Sum {
    at::Tensor mass, best;  // float64 [H]
    double queries = 0;
  };
  static void add(at::Tensor& to, const at::Tensor& x) { to = to.defined() ? to + x : x; }
  static void put(ProbeResults& results, const std::string& name, const at::Tensor& of_head) {
    const at::Tensor x = of_head.cpu().contiguous();
    const double* values = x.const_data_ptr<double>();
    results.add(name, {x.numel()}, {values, values + x.numel()});
  }

  std::map<int64_t, Sum> sums_;  // of each block
};

class IndexRecall : public Probe {
 public:
  using Probe::Probe;
  models::Capture* inside() override { return &masses_; }
  void before(State&, const StepData&, const StepSettings&, ProbeResults& results) override { masses_.report(results); }

 private:
  Masses masses_;
};

}  // namespace

const ProbeKind index_recall_probe{
    "index_recall", "attention mass that an indexer's choice holds, a value a head, for each layer that has one",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<IndexRecall>(options); }};

}  // namespace cairn
