// Prefix matching on repeated random tokens (Olsson et al. 2022, "In-context learning and induction heads"): P random
// tokens, all different where the vocabulary allows it, twice in a row after the beginning-of-sequence token, if there
// is one. The score of a head is the attention that a token of the second half pays to the token after its first
// occurrence, P - 1 rows back: the mean over the second half and over eight such sequences, the same at every step. P
// is 50, less where the context is shorter. From state n. A head whose window is shorter than P scores 0.
#include "models/random.h"
#include "trainer/probes/heads.h"
#include "trainer/probes/pieces.h"

namespace cairn {
namespace {

constexpr int64_t kPeriod = 50, kSequences = 8;

class Induction : public Probe {
 public:
  explicit Induction(const ProbeOptions& options) : Probe(options), seed_(options.seed) {
    if (options.tokenizer) bos_ = options.tokenizer->bos_id();
  }

  void after(State& state, const StepData& data, const StepSettings& settings, const StepResult&,
             ProbeResults& results) override {
    const int64_t first = bos_ ? 1 : 0, period = std::min(kPeriod, (data.context - first) / 2);
    if (period < 2) {
      throw std::invalid_argument(fmt::format(
          "probe induction: a context of {} holds no repeated tokens: expected at least {}", data.context, 4 + first));
    }
    ModelInput input = measuring_input(repeated_tokens(state.model().config().vocab_size, period), settings);
    // diagonal(-(P - 1))[j] is the attention of row j + P - 1 to row j.
    Heads heads([&](const at::Tensor& probabilities) {
      return probabilities.squeeze(0).diagonal(-(period - 1), 1, 2).narrow(1, first + 1, period);  // [H, P]
    });
    input.pass.capture = &heads;
    const at::NoGradGuard no_grad;
    state.model().hidden(input.ids, input.pass);
    heads.report(results);
  }

 private:
  data::Batch repeated_tokens(int64_t vocabulary, int64_t period) const {
    const std::string stream = "induction";
    const Philox random{seed_, Purpose::probe, hash_name(stream.data(), stream.size())};
    data::Batch batch{.rows = kSequences, .context = 2 * period + (bos_ ? 1 : 0)};
    for (int64_t row = 0; row < kSequences; ++row) {
      std::vector<int32_t> tokens;
      for (uint64_t draw = 0; static_cast<int64_t>(tokens.size()) < period; ++draw) {
        const auto token = static_cast<int32_t>(random.uniform(static_cast<uint64_t>(row) << 32 | draw) * vocabulary);
        const bool seen = std::find(tokens.begin(), tokens.end(), token) != tokens.end();
        if (!seen || vocabulary < 2 * period) tokens.push_back(token);
      }
      if (bos_) batch.inputs.push_back(*bos_);
      for (int repeat = 0; repeat < 2; ++repeat) batch.inputs.insert(batch.inputs.end(), tokens.begin(), tokens.end());
      for (int64_t t = 0; t < batch.context; ++t) batch.positions.push_back(static_cast<int32_t>(t));
    }
    batch.targets.assign(batch.inputs.size(), -1);
    batch.segments.assign(batch.inputs.size(), 0);
    return batch;
  }

  uint64_t seed_;
  std::optional<int32_t> bos_;
};

}  // namespace

const ProbeKind induction_probe{
    "induction", "prefix-matching score on repeated random tokens, a value a head, for each layer",
    [](const ProbeOptions& options) -> std::unique_ptr<Probe> { return std::make_unique<Induction>(options); }};

}  // namespace cairn
