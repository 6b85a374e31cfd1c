// Measurements of what happens inside a step, made while it is trained or, in hindsight, while it is replayed. A probe
// looks on: it never changes a bit of the run. Definitions: the head of each probe's file.
//
// To add one: a file in this folder that defines a ProbeKind, its name below and in the table of probe.cpp.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/layers/capture.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/metrics/series.h"
#include "trainer/step.h"

namespace cairn {

struct ProbeOptions {
  std::filesystem::path folder;                      // RUN/probes; results appear there as METRIC.jsonl and METRIC.h5
  int64_t every = 1;                                 // steps that are a multiple of it are measured
  uint64_t seed = 0;                                 // of random tokens and start vectors
  int64_t sequences = 8;                             // of the step's batch whose activations are looked at; 0: all
  int64_t hessian_iterations = 100;                  // at most
  std::string text;                                  // the fixed text of token_loss, itself, not a file's name
  std::shared_ptr<const data::Tokenizer> tokenizer;  // of the run; for token_loss
  double write_seconds = 30;                         // results are written so often, so that an interruption keeps them
};

// Where a probe leaves its values; the step is known.
class ProbeResults {
 public:
  // `name`: a tensor's name on disk, "layer.3", "" for the whole model (see metrics/series.h).
  void add(const std::string& name, double value) { add(name, {}, {value}); }
  void add(const std::string& name, std::vector<int64_t> shape, std::vector<double> values) {
    measured.push_back({step, name, std::move(shape), std::move(values)});
  }

  int64_t step = 0;
  std::vector<Measurement> measured;
};

// One measure. Step n: `before` sees state n-1 and the batch of step n, `gradients` those of this batch before
// clipping (state.gradient()), `after` state n. Each is called for the steps that wants() names.
class Probe {
 public:
  explicit Probe(const ProbeOptions& options) : every_(options.every) {}
  virtual ~Probe() = default;
  virtual bool wants(int64_t step) const { return step % every_ == 0; }

  // A probe that looks inside the model: before `before`, state n-1 goes forward over the first `sequences` rows of the
  // batch, without dropout, in pieces (once for all such probes), and shows this capture what it computes.
  virtual models::Capture* inside() { return nullptr; }

  virtual void before(State& state, const StepData& data, const StepSettings& settings, ProbeResults& results) {}
  virtual void gradients(State& state, const StepResult& result, ProbeResults& results) {}
  virtual void after(State& state, const StepData& data, const StepSettings& settings, const StepResult& result,
                     ProbeResults& results) {}

 protected:
  const int64_t every_;
};

struct ProbeKind {
  const char* name;                                             // of the probe and of its metric
  const char* help;                                             // one line: what, of which state, units
  std::unique_ptr<Probe> (*make)(const ProbeOptions& options);  // throws std::invalid_argument on what it cannot do
};

extern const ProbeKind activation_kurtosis_probe, activation_rms_probe, attention_entropy_probe, expert_load_probe,
    grad_cosine_probe, grad_norm_probe, hessian_probe, index_overlap_probe, index_recall_probe, induction_probe,
    noise_scale_probe, token_loss_probe, update_ratio_probe;

// The table, in order of name.
const std::vector<const ProbeKind*>& probe_kinds();

// Probes at work, as train_step's observer:
//   auto probes = make_probes({"grad_norm", "hessian"}, {.folder = run / "probes", .every = 10});
//   for (...) train_step(state, data, settings, probes.get());
//   probes->finish();
// Several may work on one folder at a time, in threads or processes. With several ranks all of them call it, and rank 0
// writes; ZeRO-1 is refused (std::invalid_argument), since no rank has whole gradients then.
class Probes : public StepObserver {
 public:
  Probes(std::vector<std::pair<const ProbeKind*, std::unique_ptr<Probe>>> probes, const ProbeOptions& options);
  // Writes what was not written yet; an error of that goes to stderr.
  ~Probes() override;

  void before(State& state, const StepData& data, const StepSettings& settings) override;
  void gradients(State& state, const StepResult& result) override;
  void after(State& state, const StepData& data, const StepSettings& settings, const StepResult& result) override;

  // Writes everything. Throws what went wrong. More steps may follow.
  void finish();

  struct Written {
    std::string metric;
    int64_t values = 0;  // measurements of this object, written so far
  };
  std::vector<Written> written() const;

 private:
  struct Entry {
    const ProbeKind* kind;
    std::unique_ptr<Probe> probe;
    bool wanted = false;   // at this step
    ProbeResults results;  // not written yet
    int64_t written = 0;
  };
  void look_inside(State& state, const StepData& data, const StepSettings& settings);

  ProbeOptions options_;
  std::vector<Entry> entries_;
  double last_write_ = 0, write_cost_ = 0;  // seconds
  bool writes_ = true;
};

// `names`: of the table, or "all". Throws std::invalid_argument naming an unknown probe, the ones there are, or the
// option that a probe misses.
std::unique_ptr<Probes> make_probes(const std::vector<std::string>& names, const ProbeOptions& options);

}  // namespace cairn
