// The loss on the straight line between two states, and the loss of a mean of states.
#include "trainer/analysis/metrics.h"
#include "trainer/analysis/predictions.h"

namespace cairn::analysis {
namespace {

Findings barrier(const States& states, size_t i) {
  const FixedText& text = states.text();
  const auto a = states.model(i - 1), b = states.model(i), between = states.model(i);
  const int64_t points = states.settings().points;
  std::vector<double> losses;
  for (int64_t k = 0; k < points; ++k) {
    if (k == 0 || k == points - 1) {
      losses.push_back(mean_nll(k == 0 ? *a : *b, text));
      continue;
    }
    interpolate(*between, *a, *b, static_cast<double>(k) / (points - 1));
    losses.push_back(mean_nll(*between, text));
  }
  double highest = 0;  // the ends themselves
  for (int64_t k = 1; k + 1 < points; ++k) {
    const double t = static_cast<double>(k) / (points - 1);
    highest = std::max(highest, losses[k] - ((1 - t) * losses.front() + t * losses.back()));
  }
  return {number("barrier", highest), array("barrier_losses", {points}, losses)};
}

Findings averaged(const States& states, size_t i) {
  const FixedText& text = states.text();
  const size_t count = std::min<size_t>(states.settings().last, i + 1);
  const auto last = states.model(i);
  const double alone = mean_nll(*last, text);
  at::NoGradGuard no_grad;
  at::Tensor sum = last->parameters().flat().to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  for (size_t k = i + 1 - count; k < i; ++k) sum += states.model(k)->parameters().flat();
  last->parameters().flat().copy_(sum / static_cast<double>(count));
  return {number("averaged_loss", mean_nll(*last, text)), number("last_loss", alone)};
}

}  // namespace

Metric barrier_metric() {
  return {
      .name = "barrier",
      .help =
          "between a state and the one before: the largest of 11 points of the loss on the line, minus the "
          "interpolation of the ends",
      .kind = Kind::model,
      .series = {"barrier", "barrier_losses"},
      .uses =
          [](const States&, size_t i) {
            return i == 0 ? std::vector<size_t>{} : std::vector<size_t>{i - 1, i};
          },
      .parameters = [](const States& s) { return fmt::format("{} {}", s.settings().points, s.text().key); },
      .check =
          [](const States& s) {
            if (s.settings().points < 3)
              throw std::invalid_argument(fmt::format("points: found {}, expected at least 3", s.settings().points));
            if (s.size() < 2) throw std::invalid_argument("one state: a line needs two");
            s.text();
          },
      .measure = barrier};
}

Metric averaged_metric() {
  return {.name = "averaged",
          .help = "loss of the mean of the last K states (--last), beside that of the last alone",
          .kind = Kind::model,
          .series = {"averaged_loss", "last_loss"},
          .uses =
              [](const States& s, size_t i) {
                std::vector<size_t> used;
                const size_t count = std::min<size_t>(s.settings().last, i + 1);
                for (size_t k = i + 1 - count; k <= i; ++k) used.push_back(k);
                return used;
              },
          .parameters = [](const States& s) { return fmt::format("{} {}", s.settings().last, s.text().key); },
          .check =
              [](const States& s) {
                if (s.settings().last < 1)
                  throw std::invalid_argument(fmt::format("last: found {}, expected at least 1", s.settings().last));
                s.text();
              },
          .measure = averaged};
}

}  // namespace cairn::analysis
