// Measures over the states of a run or of a foreign series: a table of metrics, each a function of one state (and those
// that it is compared with), computed in parallel, cached by what the weights are, written as trainer/metrics/series.h
// lays it out.
//
// To add a metric: one file with a function `Metric NAME_metric()`, one line in the table of metrics.cpp.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/address.h"
#include "trainer/analysis/states.h"
#include "trainer/metrics/series.h"

namespace cairn::analysis {

enum class Kind {
  weights,  // of one state's tensors
  pair,     // of a state's tensors beside those of earlier states
  model,    // runs the model; only states with a folder of their own
};

// One value of one series at the state being measured; `step` is filled in by the framework.
struct Finding {
  std::string series;  // one of the metric's
  Measurement value;
};
using Findings = std::vector<Finding>;

// What is wrong with a metric for this set: std::invalid_argument, before any work is done.
struct Metric {
  const char* name;
  const char* help;  // one line; the formula or its source
  Kind kind;
  // Files of results: series `norm` is norm.jsonl and norm.h5. Each finding's series is one of these.
  std::vector<const char*> series;
  // States whose weights decide the result at state i, i among them; none: nothing is measured at i (the first state
  // has none before it). Null: i alone.
  std::vector<size_t> (*uses)(const States&, size_t i) = nullptr;
  // The settings that decide the result, as text: a part of the cache's key. Null: none.
  std::string (*parameters)(const States&) = nullptr;
  // Throws std::invalid_argument saying why the metric makes no sense for these states. Null: it always does.
  void (*check)(const States&) = nullptr;
  // Called on several threads at once for different states.
  Findings (*measure)(const States&, size_t i);
  // After the last state: what only all of them together tell. found[i] is what measure gave at state i (empty where it
  // was not measured); what is added is written, but not cached. Null: nothing.
  void (*combine)(const States&, std::vector<Findings>& found) = nullptr;
};

// All there are, in the order of the help.
const std::vector<Metric>& metrics();

// The metrics of the given names (a series' name stands for its metric); none: those of kind weights and pair. Throws
// std::invalid_argument with a near match.
std::vector<const Metric*> select_metrics(const std::vector<std::string>& names);

// A number of the whole model.
Finding number(const std::string& series, double value, const std::string& name = "");
// An array.
Finding array(const std::string& series, std::vector<int64_t> shape, std::vector<double> values,
              const std::string& name = "");

struct AnalyzeOptions {
  int jobs = 0;                                      // states at a time; 0: two, or one where memory is short
  std::filesystem::path out;                         // results; a folder `cache` in it
  std::function<void(const std::string&)> say = {};  // progress
};

struct SeriesOfMetric {
  std::string series;
  std::vector<Measurement> values;  // of these states alone, ascending by step
};

struct Analysis {
  std::vector<SeriesOfMetric> found;
  int64_t measured = 0, cached = 0;  // states x metrics
};

// Measures, writes, returns. Throws what a metric throws, naming metric and state.
Analysis analyze(const States& states, const std::vector<const Metric*>& metrics, const AnalyzeOptions& options);

}  // namespace cairn::analysis
