#include "trainer/report/summary.h"

#include <algorithm>
#include <cmath>

namespace cairn::report {
namespace {

using Json = nlohmann::ordered_json;

// The mean of the last twentieth of the steps, at least 1 and at most 100: one step's loss says more of its batch.
void add_loss(Json& out, const Column& loss) {
  const size_t n = loss.values.size(), window = std::clamp<size_t>(n / 20, 1, 100);
  double sum = 0;
  size_t count = 0;
  for (size_t i = n - std::min(window, n); i < n; ++i)
    if (std::isfinite(loss.values[i])) sum += loss.values[i], ++count;
  out["loss_steps"] = window;
  if (count) out["loss"] = shorten(sum / count);
  out["nonfinite"] = std::count_if(loss.values.begin(), loss.values.end(), [](double v) { return !std::isfinite(v); });
}

void add_eval(Json& out, const Column& column) {
  // eval/SET/MEASURE; a set's name may hold slashes.
  const size_t end = column.name.rfind('/');
  Json one{{"set", column.name.substr(5, end - 5)}, {"measure", column.name.substr(end + 1)}};
  bool any = false;
  double best = 0;
  for (size_t i = 0; i < column.values.size(); ++i) {
    const double v = column.values[i];
    if (!std::isfinite(v)) continue;
    if (!any || v < best) {
      best = v;
      one["best"] = shorten(v);
      one["best_step"] = column.steps[i];
    }
    any = true;
    one["last"] = shorten(v);
    one["last_step"] = column.steps[i];
  }
  if (any) out["eval"].push_back(one);
}

}  // namespace

Json summary(const JournalData& journal) {
  Json out = Json::object();
  if (journal.steps.empty()) return out;
  out["step"] = journal.steps.back();
  if (journal.tokens.back() >= 0) out["tokens"] = journal.tokens.back();
  if (journal.seconds > 0) out["seconds"] = shorten(journal.seconds);
  if (const Column* rate = journal.find("tokens_per_s")) {
    std::vector<double> sorted = rate->values;
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    out["tokens_per_s"] = shorten(sorted[sorted.size() / 2]);
  }
  if (const Column* loss = journal.find("loss")) add_loss(out, *loss);
  out["spikes"] = std::count_if(journal.events.begin(), journal.events.end(),
                                [](const Json& event) { return event.at("event") == "spike"; });
  out["eval"] = Json::array();
  for (const Column& column : journal.columns)
    if (column.name.starts_with("eval/")) add_eval(out, column);
  return out;
}

}  // namespace cairn::report
