#include "trainer/objectives/objective.h"

#include "trainer/objectives/policy.h"

namespace cairn {
namespace {

using Maker = std::unique_ptr<Objective> (*)(const config::RunConfig&, TokenizerPtr, const models::DecoderConfig&,
                                             const data::Dataset&);

// The cross-entropy of a data set's targets.
class DataObjective : public Objective {
 public:
  explicit DataObjective(const data::Dataset& data) : data_(data) {}
  StepData step(State&, int64_t n, const StepSettings&) override { return step_data(data_, n); }

 private:
  const data::Dataset& data_;
};

std::unique_ptr<Objective> from_data(const config::RunConfig&, TokenizerPtr, const models::DecoderConfig&,
                                     const data::Dataset& data) {
  return std::make_unique<DataObjective>(data);
}

std::unique_ptr<Objective> policy(const config::RunConfig& config, TokenizerPtr tokenizer,
                                  const models::DecoderConfig& decoder, const data::Dataset&) {
  return std::make_unique<PolicyObjective>(config, std::move(tokenizer), decoder);
}

// ---- the table: one line an objective ----
struct Entry {
  const char* name;
  Maker make;
};
constexpr Entry kObjectives[] = {{"pretrain", from_data}, {"sft", from_data}, {"grpo", policy}};

}  // namespace

std::unique_ptr<Objective> make_objective(const config::RunConfig& config, TokenizerPtr tokenizer,
                                          const models::DecoderConfig& decoder, const data::Dataset& data) {
  for (const Entry& entry : kObjectives)
    if (config.objective == entry.name) return entry.make(config, std::move(tokenizer), decoder, data);
  config.fail("objective", fmt::format("found '{}', which no objective is called", config.objective));
}

}  // namespace cairn
