#include "trainer/analysis/analysis.h"

#include <map>

#include "checkpoints/store.h"
#include "checkpoints/trajectory/verify.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string set, out;
  std::vector<std::string> metrics;
  analysis::Settings settings;
  int jobs = 0, threads = 0;
  bool json = false, all = false, stored = false;
};

std::string metrics_help() {
  std::string text = "\nMetrics (none named: those of the weights):\n";
  for (const auto& metric : analysis::metrics()) text += fmt::format("  {:<12} {}\n", metric.name, metric.help);
  text +=
      "\nSeries of single states grow from call to call; those that compare states are written anew for each set.\n";
  return text;
}

Json nested(const Measurement& m, size_t dimension, size_t& at) {
  if (dimension == m.shape.size()) return std::isfinite(m.values[at]) ? Json(m.values[at++]) : (++at, Json(nullptr));
  Json array = Json::array();
  for (int64_t i = 0; i < m.shape[dimension]; ++i) array.push_back(nested(m, dimension + 1, at));
  return array;
}

// What a table shows of one series at one step: the number of the whole model, else the median over the tensors, else
// nothing (arrays).
std::optional<double> shown(const std::vector<const Measurement*>& values) {
  std::vector<double> numbers;
  for (const Measurement* m : values) {
    if (!m->shape.empty()) continue;
    if (m->name.empty()) return m->values[0];
    if (!std::isnan(m->values[0])) numbers.push_back(m->values[0]);
  }
  if (numbers.empty()) return std::nullopt;
  std::nth_element(numbers.begin(), numbers.begin() + numbers.size() / 2, numbers.end());
  return numbers[numbers.size() / 2];
}

// Steps down, series across, a few at a time.
void print_table(const analysis::States& states, const analysis::Analysis& analysis, bool all) {
  constexpr size_t kLines = 24, kColumns = 6;
  std::vector<int64_t> steps;
  for (size_t i = 0; i < states.size(); ++i) steps.push_back(states[i].step);
  if (!all && steps.size() > kLines) {  // evenly chosen, both ends among them
    std::vector<int64_t> some;
    for (size_t k = 0; k < kLines; ++k) some.push_back(steps[k * (steps.size() - 1) / (kLines - 1)]);
    steps = some;
  }
  struct Column {
    std::string head;
    std::map<int64_t, std::vector<const Measurement*>> of_step;
  };
  std::vector<Column> columns;
  bool medians = false;
  for (const auto& series : analysis.found) {
    Column column{series.series};
    bool has_numbers = false, of_model = false;
    for (const Measurement& m : series.values) {
      column.of_step[m.step].push_back(&m);
      has_numbers = has_numbers || m.shape.empty();
      of_model = of_model || (m.shape.empty() && m.name.empty());
    }
    if (!has_numbers) {
      const auto& shape = series.values.front().shape;
      fmt::print("{}: {} arrays [{}{}] over {} steps\n", series.series, series.values.size(), fmt::join(shape, ", "),
                 series.values.size() > 1 ? ", ..." : "", column.of_step.size());
      continue;
    }
    if (!of_model) column.head += '*', medians = true;
    columns.push_back(std::move(column));
  }
  for (size_t first = 0; first < columns.size(); first += kColumns) {
    const size_t last = std::min(columns.size(), first + kColumns);
    fmt::print("\n{:>9}", "step");
    for (size_t c = first; c < last; ++c)
      fmt::print("  {:>{}}", columns[c].head, std::max<size_t>(11, columns[c].head.size()));
    fmt::print("\n");
    for (const int64_t step : steps) {
      std::string line;
      bool any = false;
      for (size_t c = first; c < last; ++c) {
        const auto at = columns[c].of_step.find(step);
        const auto value = at == columns[c].of_step.end() ? std::nullopt : shown(at->second);
        any = any || value;
        line += fmt::format("  {:>{}}", value ? fmt::format("{:.5g}", *value) : "-",
                            std::max<size_t>(11, columns[c].head.size()));
      }
      if (any) fmt::print("{:>9}{}\n", step, line);
    }
  }
  if (medians) fmt::print("* median over the tensors\n");
}

// Weights need no checkpoint.
bool has_trajectory_alone(const fs::path& run) {
  const bool stored =
      fs::is_directory(run / "checkpoints") && !checkpoints::Store(run, checkpoints::Store::Mode::read).list().empty();
  return !stored && checkpoints::trajectory::is_trajectory(run / "trajectory");
}

int run_analyze(const Options& o) {
  set_threads(o.threads);
  Console console(o.json);
  const auto chosen = analysis::select_metrics(o.metrics);
  // A run by its name alone stands for everything that it keeps.
  const bool whole_run = fs::exists(fs::path(o.set) / "run.yaml");
  const analysis::States states = whole_run && !o.stored && has_trajectory_alone(o.set)
                                      ? analysis::States::of_trajectory(o.set, o.settings)
                                      : analysis::States(locate_set(o.set, true), o.settings, whole_run && !o.stored);
  for (const std::string& note : states.notes()) console.warn(note);
  fs::path out = o.out;
  if (out.empty()) out = states.run().empty() ? fs::path("analysis") : states.run() / "analysis";
  const auto found = analysis::analyze(
      states, chosen, {.jobs = o.jobs, .out = out, .say = [&](const std::string& text) { console.progress(text); }});
  if (o.json) {
    Json json{{"set", o.set}, {"out", out.string()}, {"states", Json::array()}};
    for (size_t i = 0; i < states.size(); ++i)
      json["states"].push_back({{"step", states[i].step}, {"address", states[i].address}});
    json["measured"] = found.measured;
    json["cached"] = found.cached;
    json["series"] = Json::object();
    for (const auto& series : found.found) {
      Json& list = json["series"][series.series] = Json::array();
      for (const Measurement& m : series.values) {
        size_t at = 0;
        list.push_back({{"step", m.step}, {"name", m.name}, {"value", nested(m, 0, at)}});
      }
    }
    fmt::print("{}\n", json.dump());
    return 0;
  }
  console.line(fmt::format("{}: {} states, {} metrics; {} measured, {} known from before", o.set, states.size(),
                           chosen.size(), found.measured, found.cached));
  print_table(states, found, o.all);
  fmt::print("every value, tensor by tensor: {}/SERIES.jsonl and SERIES.h5\n", out.string());
  return 0;
}

}  // namespace

Action analyze_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  auto& s = o->settings;
  command.footer(metrics_help());
  command.add_option("set", o->set, "a run, a set (RUN@A:B:STRIDE), a series (FOLDER/step{N} or a YAML list), a model")
      ->required();
  command.add_option("metrics", o->metrics, "names, see below");
  command.add_option("--out", o->out, "results (default: RUN/analysis, else ./analysis)");
  command.add_option("--jobs", o->jobs, "states at a time (default: two, where memory allows)")
      ->check(CLI::Range(1, 256));
  command.add_flag("--stored", o->stored, "leave the run's trajectory aside");
  command.add_option("--text", s.text, "a text file for metrics that run the model (default: the validation set)")
      ->check(CLI::ExistingFile);
  command.add_option("--tokens", s.tokens, "of that text, at most (2048)")->check(CLI::PositiveNumber);
  command.add_option("--context", s.context, "tokens of a row of it (default: the model's, at most 256)")
      ->check(CLI::PositiveNumber);
  command.add_option("--last", s.last, "averaged: states in the mean (5)");
  command.add_option("--points", s.points, "barrier: points on the line (11)");
  command.add_option("--samples", s.samples, "memorised: sequences (64)");
  command.add_option("--seed", s.seed, "memorised: which of them");
  command.add_option("--thresholds", s.thresholds, "sparsity (0,1e-6,1e-4,1e-3,1e-2)")
      ->allow_extra_args(false)
      ->delimiter(',');
  add_threads(command, o->threads);
  command.add_flag("--all", o->all, "a line for every step");
  command.add_flag("--json", o->json, "{\"states\", \"series\": {NAME: [{\"step\", \"name\", \"value\"}]}, ...}");
  return [o] { return run_analyze(*o); };
}

}  // namespace cairn::cli
