// Of a state's tensors beside those of earlier states.
#include "checkpoints/analysis/statistics.h"
#include "trainer/analysis/metrics.h"

namespace cairn::analysis {
namespace {

using checkpoints::PairStatistics;

// PREFIX: |b - a|, relative_PREFIX: |b - a| / |a|, PREFIX_cosine: of a and b.
Findings pair_findings(const States& states, size_t a, size_t b, const std::string& prefix) {
  const auto first = states.weights(a), second = states.weights(b);
  Findings found;
  const auto add = [&](const PairStatistics& s, const std::string& name) {
    found.push_back(number(prefix, s.norm_difference(), name));
    found.push_back(number("relative_" + prefix, s.relative(), name));
    found.push_back(number(prefix + "_cosine", s.cosine(), name));
  };
  PairStatistics total;
  for (const std::string& name : first->names()) {
    const auto left = first->get(name), right = second->get(name);
    const auto s = checkpoints::pair_statistics(left.view, right.view, states.common_dtype());
    add(s, name);
    total += s;
  }
  add(total, "");
  return found;
}

Findings drift(const States& states, size_t i) { return pair_findings(states, 0, i, "drift"); }

Findings change(const States& states, size_t i) {
  Findings found = pair_findings(states, i - 1, i, "change");
  if (i < 2) return found;
  const auto a = states.weights(i - 2), b = states.weights(i - 1), c = states.weights(i);
  checkpoints::DirectionStatistics total;
  for (const std::string& name : a->names()) {
    const auto x = a->get(name), y = b->get(name), z = c->get(name);
    const auto s = checkpoints::direction_statistics(x.view, y.view, z.view, states.common_dtype());
    found.push_back(number("change_direction", s.cosine(), name));
    total += s;
  }
  found.push_back(number("change_direction", total.cosine()));
  return found;
}

}  // namespace

Metric drift_metric() {
  return {.name = "drift",
          .help = "distance to the first state, relative to its norm, and the cosine of the two",
          .kind = Kind::pair,
          .series = {"drift", "relative_drift", "drift_cosine"},
          .uses =
              [](const States&, size_t i) {
                return std::vector<size_t>{0, i};
              },
          .measure = drift};
}

Metric change_metric() {
  return {.name = "change",
          .help = "the same to the state before; change_direction: cosine of two successive changes",
          .kind = Kind::pair,
          .series = {"change", "relative_change", "change_cosine", "change_direction"},
          .uses =
              [](const States&, size_t i) {
                if (i == 0) return std::vector<size_t>{};
                return i == 1 ? std::vector<size_t>{0, 1} : std::vector<size_t>{i - 2, i - 1, i};
              },
          .measure = change};
}

}  // namespace cairn::analysis
