// Token by token: when a fixed text is learned, and what is forgotten again (Toneva 2019).
#include <limits>

#include "trainer/analysis/metrics.h"
#include "trainer/analysis/predictions.h"

namespace cairn::analysis {
namespace {

Findings predictions(const States& states, size_t i) {
  const auto model = states.model(i);
  std::vector<double> nll, argmax;
  for (const data::Batch& batch : states.text().batches) {
    const Predictions p = predict(*model, batch);
    nll.insert(nll.end(), p.nll.begin(), p.nll.end());
    argmax.insert(argmax.end(), p.is_argmax.begin(), p.is_argmax.end());
  }
  const auto count = static_cast<int64_t>(nll.size());
  return {array("token_nll", {count}, std::move(nll)), array("token_argmax", {count}, std::move(argmax))};
}

const std::vector<double>& argmax_of(const Findings& found) {
  for (const Finding& f : found)
    if (f.series == "token_argmax") return f.value.values;
  throw std::logic_error("learning: a state without predictions");
}

// learned at state i: the argmax there and at every later state; forgotten at i: it was at some earlier one and is not.
void add_curves(const States& states, std::vector<Findings>& found) {
  const size_t count = found.size(), tokens = argmax_of(found.front()).size();
  std::vector<std::vector<double>> is(count);
  for (size_t i = 0; i < count; ++i) is[i] = argmax_of(found[i]);
  std::vector<double> learned_step(tokens, std::numeric_limits<double>::quiet_NaN()), forgettings(tokens, 0.0);
  std::vector<double> learned(count, 0.0), forgotten(count, 0.0);
  for (size_t t = 0; t < tokens; ++t) {
    size_t from = count;  // the first state from which on it stays the argmax
    while (from > 0 && is[from - 1][t] != 0) --from;
    if (from < count) learned_step[t] = static_cast<double>(states[from].step);
    bool was = false;
    for (size_t i = 0; i < count; ++i) {
      learned[i] += i >= from;
      forgotten[i] += was && is[i][t] == 0;
      forgettings[t] += i > 0 && is[i - 1][t] != 0 && is[i][t] == 0;
      was = was || is[i][t] != 0;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    found[i].push_back(number("learned", learned[i] / static_cast<double>(tokens)));
    found[i].push_back(number("forgotten", forgotten[i] / static_cast<double>(tokens)));
  }
  const auto length = static_cast<int64_t>(tokens);
  found.back().push_back(array("learned_step", {length}, std::move(learned_step)));
  found.back().push_back(array("forgettings", {length}, std::move(forgettings)));
  std::vector<double> ids;
  for (const data::Batch& batch : states.text().batches)
    for (const int32_t id : batch.targets)
      if (id >= 0) ids.push_back(id);
  found.back().push_back(array("token_id", {length}, std::move(ids)));
}

}  // namespace

Metric learning_metric() {
  return {.name = "learning",
          .help =
              "each token of a fixed text: loss, whether it is the argmax, the step from which on it stays so "
              "(learned), how often it was lost again (forgettings); learned, forgotten: shares of the tokens",
          .kind = Kind::model,
          .series = {"token_nll", "token_argmax", "learned", "forgotten", "learned_step", "forgettings", "token_id"},
          .parameters = [](const States& s) { return s.text().key; },
          .check = [](const States& s) { s.text(); },
          .measure = predictions,
          .combine = add_curves};
}

}  // namespace cairn::analysis
