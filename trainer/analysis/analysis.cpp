#include "trainer/analysis/analysis.h"

#include <ATen/Parallel.h>
#include <xxhash.h>

#include <atomic>
#include <exception>
#include <fstream>
#include <set>
#include <thread>

#include "checkpoints/file.h"
#include "trainer/analysis/cache.h"
#include "trainer/config/location.h"

namespace cairn::analysis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kCacheVersion = 1;  // of all metrics' definitions

std::vector<size_t> used_states(const Metric& metric, const States& states, size_t i) {
  return metric.uses ? metric.uses(states, i) : std::vector<size_t>{i};
}

std::string parameters_of(const Metric& metric, const States& states) {
  return metric.parameters ? metric.parameters(states) : std::string();
}

// Everything that decides the result; empty where something is not known.
std::string cache_key(const Metric& metric, const States& states, const std::vector<size_t>& uses) {
  std::string text = fmt::format("{} {} {}\n", kCacheVersion, metric.name, parameters_of(metric, states));
  for (const size_t k : uses) {
    const std::string key = states.key(k);
    if (key.empty()) return {};
    text += key + "\n";
  }
  if (metric.kind == Kind::pair && states.common_dtype())
    text += std::string(checkpoints::dtype_name(*states.common_dtype()));
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size())) +
         fmt::format("{:016x}", XXH3_64bits_withSeed(text.data(), text.size(), 1));
}

// Bytes that the system could give now; 0 where it does not say.
int64_t available_memory() {
  std::ifstream info("/proc/meminfo");
  std::string name, unit;
  int64_t kib = 0;
  while (info >> name >> kib >> unit)
    if (name == "MemAvailable:") return kib * 1024;
  return 0;
}

// A state costs about its weights three times over: as stored, as float32 or float64, and what is computed from them.
int jobs_for(const States& states, int wanted) {
  const int threads = at::get_num_threads();
  if (wanted > 0) return wanted;
  int64_t elements = 0;
  const auto weights = states.weights(0);
  for (const std::string& name : weights->names()) {
    int64_t count = 1;
    for (const int64_t extent : weights->shape(name)) count *= extent;
    elements += count;
  }
  const int64_t available = available_memory();
  const bool fits = available == 0 || 2 * 3 * 4 * elements < available * 3 / 4;
  return std::min(threads, fits ? 2 : 1);
}

struct Task {
  const Metric* metric;
  const States* states;
  size_t state;  // in `states`
  Findings* found;
};

// Runs action(task) on `jobs` threads, in order; the first exception stops the rest and is thrown here.
void run_parallel(size_t count, int jobs, const std::function<void(size_t)>& action) {
  const int threads = at::get_num_threads();
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    for (size_t i = next++; i < count && !stop; i = next++) {
      try {
        action(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        stop = true;
      }
    }
  };
  if (jobs <= 1) {
    work();
  } else {
    std::vector<std::thread> workers;
    for (int k = 0; k < jobs; ++k) {
      workers.emplace_back([&] {
        at::set_num_threads(std::max(1, threads / jobs));
        work();
      });
    }
    for (std::thread& worker : workers) worker.join();
    at::set_num_threads(threads);
  }
  if (failure) std::rethrow_exception(failure);
}

// Values of other settings, or beside other states, are not one series with these: they make room.
void make_room(const fs::path& out, const std::vector<const Metric*>& chosen,
               const std::function<std::string(const Metric&)>& parameters) {
  const fs::path path = out / "settings.json";
  Json settings = Json::object();
  if (fs::exists(path)) {
    settings = Json::parse(checkpoints::read_file(path), nullptr, false);
    if (!settings.is_object()) settings = Json::object();
  }
  for (const Metric* metric : chosen) {
    const std::string now = parameters(*metric);
    const bool alone = !metric->uses && !metric->combine;  // each state for itself
    if (!alone || settings.value(metric->name, now) != now) {
      for (const char* series : metric->series)
        for (const char* extension : {".jsonl", ".h5"}) fs::remove(out / (std::string(series) + extension));
    }
    settings[metric->name] = now;
  }
  checkpoints::replace_file(path, settings.dump(2) + "\n");
}

}  // namespace

Finding number(const std::string& series, double value, const std::string& name) {
  return {series, {.name = name, .values = {value}}};
}

Finding array(const std::string& series, std::vector<int64_t> shape, std::vector<double> values,
              const std::string& name) {
  return {series, {.name = name, .shape = std::move(shape), .values = std::move(values)}};
}

std::vector<const Metric*> select_metrics(const std::vector<std::string>& names) {
  std::vector<const Metric*> chosen;
  std::vector<std::string> known;
  for (const Metric& metric : metrics()) {
    known.push_back(metric.name);
    for (const char* series : metric.series)
      if (std::string(series) != metric.name) known.push_back(series);
    if (names.empty() && metric.kind != Kind::model) chosen.push_back(&metric);
  }
  for (const std::string& name : names) {
    const Metric* found = nullptr;
    for (const Metric& metric : metrics()) {
      const bool has_series =
          std::any_of(metric.series.begin(), metric.series.end(), [&](const char* series) { return name == series; });
      if (name == metric.name || (!found && has_series)) found = &metric;
    }
    if (!found) {
      std::string all;
      for (const Metric& metric : metrics()) all += (all.empty() ? "" : ", ") + std::string(metric.name);
      throw std::invalid_argument(
          fmt::format("'{}' is no metric{}; there are {}", name, config::did_you_mean(name, known), all));
    }
    if (std::find(chosen.begin(), chosen.end(), found) == chosen.end()) chosen.push_back(found);
  }
  return chosen;
}

Analysis analyze(const States& states, const std::vector<const Metric*>& chosen, const AnalyzeOptions& options) {
  const States folders = states.with_folders();
  const auto states_of = [&](const Metric& metric) -> const States& {
    return metric.kind == Kind::model ? folders : states;
  };
  for (const Metric* metric : chosen) {
    if (states_of(*metric).size() == 0)
      throw std::invalid_argument(fmt::format(
          "{}: no state of this set has a model of its own; a range of steps (RUN@A:B:STRIDE) is rebuilt by replay",
          metric->name));
    try {
      if (metric->check) metric->check(states_of(*metric));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(fmt::format("{}: {}", metric->name, error.what()));
    }
  }

  // State by state, so that the weights read for one metric are still in memory for the next.
  std::map<const Metric*, std::vector<Findings>> found;
  std::vector<Task> tasks;
  for (const Metric* metric : chosen) {
    found[metric].resize(states_of(*metric).size());
    for (size_t i = 0; i < states_of(*metric).size(); ++i)
      if (!used_states(*metric, states_of(*metric), i).empty())
        tasks.push_back({metric, &states_of(*metric), i, &found[metric][i]});
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return (*a.states)[a.state].step < (*b.states)[b.state].step; });

  Cache cache(options.out / "cache");
  Analysis analysis;
  std::atomic<int64_t> measured{0}, cached{0};
  std::mutex saying;
  run_parallel(tasks.size(), jobs_for(states, options.jobs), [&](size_t t) {
    const Task& task = tasks[t];
    const StateInfo& state = (*task.states)[task.state];
    const std::string key = cache_key(*task.metric, *task.states, used_states(*task.metric, *task.states, task.state));
    if (auto known = key.empty() ? std::nullopt : cache.find(task.metric->name, key)) {
      *task.found = std::move(*known);
      ++cached;
      return;
    }
    if (options.say) {
      const std::lock_guard lock(saying);
      options.say(fmt::format("{} of {}: {}, step {}", t + 1, tasks.size(), task.metric->name, state.step));
    }
    try {
      *task.found = task.metric->measure(*task.states, task.state);
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}, {}: {}", task.metric->name, state.address, error.what()));
    }
    if (!key.empty()) cache.put(task.metric->name, key, *task.found);
    ++measured;
  });
  analysis.measured = measured;
  analysis.cached = cached;

  fs::create_directories(options.out);
  make_room(options.out, chosen, [&](const Metric& metric) { return parameters_of(metric, states_of(metric)); });
  for (const Metric* metric : chosen) {
    const States& of = states_of(*metric);
    std::vector<Findings>& findings = found[metric];
    if (metric->combine) metric->combine(of, findings);
    for (const char* series : metric->series) {
      SeriesOfMetric result{.series = series};
      for (size_t i = 0; i < findings.size(); ++i) {
        for (const Finding& finding : findings[i]) {
          if (finding.series != series) continue;
          result.values.push_back(finding.value);
          result.values.back().step = of[i].step;
        }
      }
      if (result.values.empty()) continue;
      write_series(options.out, series, result.values);
      analysis.found.push_back(std::move(result));
    }
  }
  return analysis;
}

}  // namespace cairn::analysis
