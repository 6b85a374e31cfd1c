// Memorised training text (Biderman 2023): 32 tokens of a sequence that a step read, the next 32 greedy and exact. By
// the step that saw it: what later steps see is the control.
#include <mutex>

#include "checkpoints/journal.h"
#include "models/random.h"
#include "trainer/analysis/metrics.h"
#include "trainer/analysis/predictions.h"

namespace cairn::analysis {
namespace {

constexpr int64_t kPrompt = 32, kContinuation = 32, kLength = kPrompt + kContinuation;

struct Window {
  int64_t step = 0, row = 0;  // that read it
  std::vector<int32_t> ids;   // kLength
};

int64_t steps_made(const States& states) {
  const auto index = checkpoints::index_journal(states.run() / "journal.jsonl");
  return index.lines.empty() ? 0 : index.lines.back().step;
}

// The begin of one row of each of `samples` steps, spread evenly over the run; which row is drawn by (seed, step).
// A row that begins a later repetition of the same window (another epoch) is as good as any.
std::vector<Window> windows(const States& states) {
  const int64_t last = steps_made(states), wanted = std::min(states.settings().samples, last);
  std::vector<Window> all;
  for (int64_t k = 0; k < wanted; ++k) {
    const int64_t step = 1 + (wanted == 1 ? 0 : k * (last - 1) / (wanted - 1));
    const data::Dataset& data = states.data(step);
    if (data.context(step) < kLength) continue;
    const Philox draw{states.settings().seed, Purpose::evaluate, static_cast<uint64_t>(step)};
    const auto row = static_cast<int64_t>(draw.uniform(0) * static_cast<double>(data.rows(step)));
    const data::Batch batch = data.batch_rows(step, row, 1);
    all.push_back({step, row, {batch.inputs.begin(), batch.inputs.begin() + kLength}});
  }
  return all;
}

// NOTE: greedy decoding reproduces the continuation exactly if and only if, with the true tokens before it, each of
// them is the argmax: up to the first miss the two contexts are the same. So one forward pass does, and the number of
// tokens before the first miss is the length of the match.
std::vector<double> match_lengths(const models::Decoder& model, const std::vector<Window>& all) {
  constexpr size_t kRows = 16;
  std::vector<double> lengths;
  for (size_t first = 0; first < all.size(); first += kRows) {
    const size_t rows = std::min(kRows, all.size() - first);
    data::Batch batch{.rows = static_cast<int64_t>(rows), .context = kLength - 1};
    for (size_t r = 0; r < rows; ++r) {
      const std::vector<int32_t>& ids = all[first + r].ids;
      for (int64_t i = 0; i + 1 < kLength; ++i) {
        batch.inputs.push_back(ids[i]);
        batch.targets.push_back(i + 1 >= kPrompt ? ids[i + 1] : -1);
        batch.positions.push_back(static_cast<int32_t>(i));
        batch.segments.push_back(0);
      }
    }
    const Predictions p = predict(model, batch);
    for (size_t r = 0; r < rows; ++r) {
      const auto begin = p.is_argmax.begin() + r * kContinuation;
      lengths.push_back(static_cast<double>(std::find(begin, begin + kContinuation, 0) - begin));
    }
  }
  return lengths;
}

Findings memorised(const States& states, size_t i) {
  const std::vector<Window> all = windows(states);
  const std::vector<double> lengths = match_lengths(*states.model(i), all);
  std::vector<double> steps;
  // Exact ones and their number, among those that were seen by this state and those that were not yet.
  double exact[2] = {0, 0}, count[2] = {0, 0};
  for (size_t k = 0; k < all.size(); ++k) {
    const bool seen = all[k].step <= states[i].step;
    count[seen] += 1;
    exact[seen] += lengths[k] == kContinuation;
    steps.push_back(static_cast<double>(all[k].step));
  }
  const auto length = static_cast<int64_t>(all.size());
  Findings found = {array("memorised_length", {length}, lengths), array("memorised_step", {length}, steps)};
  if (count[1] > 0) found.push_back(number("memorised", exact[1] / count[1]));
  if (count[0] > 0) found.push_back(number("memorised_unseen", exact[0] / count[0]));
  return found;
}

void check(const States& states) {
  if (states.run().empty())
    throw std::invalid_argument("it asks for training text, and these states are of no one run");
  if (states.settings().samples < 1)
    throw std::invalid_argument(fmt::format("samples: found {}, expected at least 1", states.settings().samples));
  if (windows(states).empty())
    throw std::invalid_argument(fmt::format("no step of {} read sequences of {} tokens or more (data.context)",
                                            states.run().string(), kLength));
}

}  // namespace

Metric memorised_metric() {
  return {.name = "memorised",
          .help =
              "share of training sequences whose tokens 33 to 64 follow greedily and exactly from the first 32, among "
              "those already seen and those not yet; tokens that match, by the step that saw them",
          .kind = Kind::model,
          .series = {"memorised", "memorised_unseen", "memorised_length", "memorised_step"},
          .parameters =
              [](const States& s) {
                return fmt::format("{} {} {}", s.settings().samples, s.settings().seed, steps_made(s));
              },
          .check = check,
          .measure = memorised};
}

}  // namespace cairn::analysis
