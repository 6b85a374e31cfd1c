// The loss of every token of a fixed text, in nats, from state n: token i >= 1 given those before it, in windows of the
// run's context that do not overlap, special tokens as the tokenizer adds them. The series carries a hash of the text
// in its name, "text-0123abcd" [tokens - 1], so that another text does not mix with it; "text-0123abcd.ids" [tokens],
// once, are the tokens.
#include "models/random.h"
#include "trainer/evaluate.h"
#include "trainer/probes/probe.h"

namespace cairn {
namespace {

class TokenLoss : public Probe {
 public:
  explicit TokenLoss(const ProbeOptions& options) : Probe(options) {
    if (options.text.empty()) throw std::invalid_argument("probe token_loss: needs a fixed text (--text FILE)");
    if (!options.tokenizer) throw std::invalid_argument("probe token_loss: needs the run's tokenizer");
    ids_ = options.tokenizer->encode(options.text, true);
    if (ids_.size() < 2) {
      throw std::invalid_argument(
          fmt::format("probe token_loss: the text gives {} tokens; at least 2 are needed to predict one", ids_.size()));
    }
    name_ = fmt::format("text-{:08x}", static_cast<uint32_t>(hash_name(options.text.data(), options.text.size())));
  }

  void after(State& state, const StepData& data, const StepSettings&, const StepResult&,
             ProbeResults& results) override {
    const int64_t count = ids_.size();
    std::vector<double> losses;
    for (int64_t begin = 0; begin + 1 < count; begin += data.context) {
      const int64_t end = std::min(begin + data.context, count - 1);
      for (const float logprob : log_probabilities(state.model(), {ids_.begin() + begin, ids_.begin() + end + 1}))
        losses.push_back(-logprob);
    }
    results.add(name_, {count - 1}, std::move(losses));
    if (!told_) results.add(name_ + ".ids", {count}, {ids_.begin(), ids_.end()});
    told_ = true;
  }

 private:
  std::vector<int32_t> ids_;
  std::string name_;
  bool told_ = false;
};

}  // namespace

const ProbeKind token_loss_probe{
    "token_loss", "loss of every token of a fixed text, in nats",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<TokenLoss>(options); }};

}  // namespace cairn
