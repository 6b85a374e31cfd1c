// How much of an indexer's choice a step leaves as it is: of the k keys that state n-1 chooses for a query, the share
// that state n chooses too; the mean over the queries of the same rows that have more than k candidates, "layer.I".
// Nothing where all keys are read. The cost is one more forward pass.
#include "models/kernels/ref/sparse_attention.h"
#include "trainer/probes/heads.h"
#include "trainer/probes/pieces.h"

namespace cairn {
namespace {

// The sets of a pass, piece by piece, in the order of the rows.
class Sets : public models::Capture {
 public:
  struct Piece {
    at::Tensor selected;    // int32 [N, S]
    at::Tensor candidates;  // int64 [batch, length]
  };
  bool wants_attention() const override { return true; }
  void attention(int64_t block, const at::Tensor&, const at::Tensor&, const at::Tensor& selected,
                 const kernels::AttentionOptions& options) override {
    if (selected.defined()) pieces_[block].push_back({selected.detach().cpu(), candidates(selected.size(0), options)});
  }
  std::map<int64_t, std::vector<Piece>> take() { return std::exchange(pieces_, {}); }

 private:
  std::map<int64_t, std::vector<Piece>> pieces_;
};

class IndexOverlap : public Probe {
 public:
  explicit IndexOverlap(const ProbeOptions& options) : Probe(options), sequences_(options.sequences) {}
  models::Capture* inside() override { return &sets_; }
  void before(State&, const StepData&, const StepSettings&, ProbeResults&) override { old_ = sets_.take(); }

  void after(State& state, const StepData& data, const StepSettings& settings, const StepResult&,
             ProbeResults& results) override {
    if (old_.empty()) return;
    const at::NoGradGuard no_grad;
    const int64_t rows = sequences_ > 0 ? std::min(sequences_, settings.batch) : settings.batch;
    for_pieces(data, settings, rows, settings.micro_batch, [&](ModelInput& input) {
      input.pass.capture = &sets_;
      state.model().hidden(input.ids, input.pass);
    });
    const auto now = sets_.take();
    for (const auto& [block, pieces] : old_) {
      double kept = 0, queries = 0;
      for (size_t i = 0; i < pieces.size(); ++i) {
        const auto [same, of] = compare(pieces[i], now.at(block).at(i));
        kept += same, queries += of;
      }
      if (queries > 0) results.add(fmt::format("layer.{}", block), kept / queries);
    }
    old_.clear();
  }

 private:
  // Sum of the shares, and the queries that count.
  static std::pair<double, double> compare(const Sets::Piece& a, const Sets::Piece& b) {
    const int64_t batch = a.candidates.size(0), length = a.candidates.size(1);
    const at::Tensor before = kernels::ref::selected_mask(a.selected, batch, length),
                     after = kernels::ref::selected_mask(b.selected, batch, length);  // [B, T, T]
    const at::Tensor held = before.sum(-1).to(at::kDouble);
    const at::Tensor counts = a.candidates.gt(held);
    const at::Tensor share = before.logical_and(after).sum(-1).to(at::kDouble) / held.clamp_min(1);
    return {(share * counts).sum().item<double>(), counts.sum().item<double>()};
  }

  int64_t sequences_;
  Sets sets_;
  std::map<int64_t, std::vector<Sets::Piece>> old_;
};

}  // namespace

const ProbeKind index_overlap_probe{
    "index_overlap", "share of an indexer's chosen keys that a step leaves chosen, for each layer that has one",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<IndexOverlap>(options); }};

}  // namespace cairn
