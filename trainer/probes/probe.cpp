#include "trainer/probes/probe.h"

#include <chrono>

#include "trainer/probes/pieces.h"

namespace cairn {

const std::vector<const ProbeKind*>& probe_kinds() {
  static const std::vector<const ProbeKind*> kinds = {
      &activation_kurtosis_probe, &activation_rms_probe, &attention_entropy_probe, &expert_load_probe,
      &grad_cosine_probe,         &grad_norm_probe,      &hessian_probe,           &index_overlap_probe,
      &index_recall_probe,        &induction_probe,      &noise_scale_probe,       &token_loss_probe,
      &update_ratio_probe,
  };
  return kinds;
}

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Shows every capture what one pass computes.
class Audience : public models::Capture {
 public:
  explicit Audience(std::vector<models::Capture*> all) : all_(std::move(all)) {
    for (const auto* one : all_) attention_ = attention_ || one->wants_attention();
  }
  void stream(int64_t block, const at::Tensor& x) override {
    for (auto* one : all_) one->stream(block, x);
  }
  bool wants_attention() const override { return attention_; }
  void attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                 const kernels::AttentionOptions& options) override {
    for (auto* one : all_) {
      if (one->wants_attention()) one->attention(block, q, k, selected, options);
    }
  }
  void experts(int64_t block, const at::Tensor& chosen, int64_t num_experts) override {
    for (auto* one : all_) one->experts(block, chosen, num_experts);
  }

 private:
  std::vector<models::Capture*> all_;
  bool attention_ = false;
};

void refuse_shards(State& state) {
  int64_t owned = 0;
  for (const auto& [offset, length] : state.reducer().owned()) owned += length;
  if (owned != state.gradient().numel()) {
    throw std::invalid_argument(
        "probes need the whole gradient on a rank, which parallel.zero: 1 does not keep: replay on one rank, or use "
        "zero: 0");
  }
}

}  // namespace

Probes::Probes(std::vector<std::pair<const ProbeKind*, std::unique_ptr<Probe>>> probes, const ProbeOptions& options)
    : options_(options), last_write_(now()) {
  for (auto& [kind, probe] : probes) entries_.push_back({.kind = kind, .probe = std::move(probe)});
}

Probes::~Probes() {
  try {
    finish();
  } catch (const std::exception& error) {
    fmt::print(stderr, "probes: what was measured last is lost: {}\n", error.what());
  }
}

void Probes::look_inside(State& state, const StepData& data, const StepSettings& settings) {
  std::vector<models::Capture*> captures;
  for (auto& entry : entries_) {
    if (models::Capture* capture = entry.wanted ? entry.probe->inside() : nullptr) captures.push_back(capture);
  }
  if (captures.empty()) return;
  Audience audience(std::move(captures));
  const at::NoGradGuard no_grad;
  const int64_t rows = options_.sequences > 0 ? std::min(options_.sequences, settings.batch) : settings.batch;
  for_pieces(data, settings, rows, settings.micro_batch, [&](ModelInput& input) {
    input.pass.capture = &audience;
    state.model().hidden(input.ids, input.pass);
  });
}

void Probes::before(State& state, const StepData& data, const StepSettings& settings) {
  refuse_shards(state);
  writes_ = state.world().is_first();
  for (auto& entry : entries_) {
    entry.results.step = state.step + 1;
    entry.wanted = entry.probe->wants(state.step + 1);
  }
  look_inside(state, data, settings);
  for (auto& entry : entries_) {
    if (entry.wanted) entry.probe->before(state, data, settings, entry.results);
  }
}

void Probes::gradients(State& state, const StepResult& result) {
  for (auto& entry : entries_) {
    if (entry.wanted) entry.probe->gradients(state, result, entry.results);
  }
}

void Probes::after(State& state, const StepData& data, const StepSettings& settings, const StepResult& result) {
  for (auto& entry : entries_) {
    if (entry.wanted) entry.probe->after(state, data, settings, result, entry.results);
  }
  // A long series takes long to write: at most a tenth of the time goes there.
  if (now() - last_write_ >= std::max(options_.write_seconds, 10 * write_cost_)) finish();
}

void Probes::finish() {
  const double begin = now();
  for (auto& entry : entries_) {
    auto& measured = entry.results.measured;
    if (measured.empty()) continue;
    if (writes_) write_series(options_.folder, entry.kind->name, measured);
    entry.written += measured.size();
    measured.clear();
  }
  last_write_ = now();
  write_cost_ = last_write_ - begin;
}

std::vector<Probes::Written> Probes::written() const {
  std::vector<Written> all;
  for (const auto& entry : entries_) all.push_back({entry.kind->name, entry.written});
  return all;
}

std::unique_ptr<Probes> make_probes(const std::vector<std::string>& names, const ProbeOptions& options) {
  if (options.every < 1)
    throw std::invalid_argument(fmt::format("probes: every: found {}, expected at least 1", options.every));
  if (options.sequences < 0) {
    throw std::invalid_argument(
        fmt::format("probes: sequences: found {}, expected 1 or more, or 0 for the whole batch", options.sequences));
  }
  std::vector<const ProbeKind*> wanted;
  const auto want = [&](const ProbeKind* kind) {
    if (std::find(wanted.begin(), wanted.end(), kind) == wanted.end()) wanted.push_back(kind);
  };
  for (const std::string& name : names) {
    bool known = name == "all";
    for (const ProbeKind* kind : probe_kinds()) {
      if (name != "all" && name != kind->name) continue;
      if (name == "all" && kind == &token_loss_probe && options.text.empty()) continue;  // nobody named a text
      known = true;
      want(kind);
    }
    if (!known) {
      std::vector<std::string> all;
      for (const ProbeKind* kind : probe_kinds()) all.push_back(kind->name);
      throw std::invalid_argument(
          fmt::format("unknown probe '{}', expected all or one of {}", name, fmt::join(all, ", ")));
    }
  }
  std::vector<std::pair<const ProbeKind*, std::unique_ptr<Probe>>> made;
  for (const ProbeKind* kind : wanted) made.emplace_back(kind, kind->make(options));
  return std::make_unique<Probes>(std::move(made), options);
}

}  // namespace cairn
