#include "trainer/replay_steps.h"

#include "trainer/console.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

bool has_spike_rule(const config::RunConfig& config) {
  return std::any_of(config.stages.begin(), config.stages.end(),
                     [](const auto& stage) { return stage.train.on_spike.action != "none"; });
}

std::string digest_of(const Json& line) {
  return line.contains("digest") && line.at("digest").is_string() ? line.at("digest").get<std::string>() : "";
}

}  // namespace

Replayer::Replayer(const RunRecord& record) : record_(record), world_(parallel::World::join(parallel::Launch{})) {}

std::unique_ptr<Stepper> Replayer::prepared(int64_t step) {
  auto stepper = std::make_unique<Stepper>(record_.settings_at(step), *world_);
  stepper->prepare({}, record_.run());
  check_sources(record_.run(), stepper->data());
  stepper->open();
  until_ = record_.settings_until(step);
  return stepper;
}

void Replayer::remember_past(Stepper& stepper, int64_t step) {
  if (!has_spike_rule(stepper.config())) return;
  for (const auto& [n, line] : record_.lines(1, step)) stepper.remember(line);
}

int64_t Replayer::begin(int64_t step, bool cached) {
  stepper_.reset();
  elapsed_ = 0;
  for (const auto& base : record_.bases(step, cached)) {
    const auto fault = checkpoints::verify_folder(base.folder);
    // A file besides those written does no harm here.
    if (fault && fault->problem != "extra") {
      damaged_.push_back({base.step, base.folder, fault->message()});
      continue;
    }
    // Where settings change, the state goes on under the new ones.
    if (!stepper_ || until_ != record_.settings_until(base.step + 1)) stepper_ = prepared(base.step + 1);
    try {
      elapsed_ = stepper_->load(base.folder).value("elapsed", 0.0);
      const auto lines = record_.lines(base.step, base.step);
      const std::string recorded = lines.empty() ? "" : digest_of(lines.begin()->second);
      const bool changes = record_.settings_until(base.step) == base.step;
      if (!recorded.empty() && !changes && recorded != stepper_->state().digest().hex())
        throw std::runtime_error(
            fmt::format("its state has digest {}, the journal says {}", stepper_->state().digest().hex(), recorded));
    } catch (const std::exception& error) {
      damaged_.push_back({base.step, base.folder, error.what()});
      continue;
    }
    remember_past(*stepper_, base.step);
    return base_ = base.step;
  }
  elapsed_ = 0;
  stepper_ = prepared(1);
  stepper_->initialise();
  return base_ = 0;
}

Advance Replayer::next(StepObserver* observer) {
  if (stepper_->step() >= until_) {
    auto next = prepared(stepper_->step() + 1);
    next->take(*stepper_);
    remember_past(*next, stepper_->step());
    stepper_ = std::move(next);
  }
  return stepper_->advance(observer);
}

bool Replayer::nearer(int64_t step, bool cached) const {
  const auto bases = record_.bases(step, cached);
  return !bases.empty() && bases.front().step > stepper_->step();
}

void check_reach(const RunRecord& record, int64_t step) {
  if (!record.has_journal() || step <= record.last_step()) return;
  throw std::runtime_error(
      fmt::format("{}@{} is beyond the run, whose journal ends at step {}: expected a step from 0 to {}",
                  record.run().string(), step, record.last_step(), record.last_step()));
}

double rebuild(Replayer& replayer, int64_t step, const RebuildTalk& talk) {
  const RunRecord& record = replayer.record();
  const std::string run = record.run().string();
  const auto say = [&](const std::string& text) {
    if (talk.say) talk.say(text);
  };
  if (!record.has_journal()) {
    throw std::runtime_error(
        fmt::format("{}@{}: {} has no journal.jsonl, by which a step that is not stored is rebuilt "
                    "and verified; stored steps can be used",
                    run, step, run));
  }
  check_reach(record, step);
  const bool goes_on = replayer.begun() && replayer.step() <= step && !replayer.nearer(step, true);
  const int64_t start = goes_on ? replayer.step() : replayer.begin(step, true);
  if (!goes_on) {
    for (const auto& damaged : replayer.damaged()) {
      say(fmt::format("{} is damaged ({}): going back to {}", damaged.folder.string(), damaged.fault,
                      start > 0 ? fmt::format("step {}", start) : "the initialisation"));
    }
  }
  const auto lines = record.lines(start + 1, step);
  if (start < step) {
    const int64_t witness = record.witness(step);
    if (!talk.cost_told) {
      const int64_t end = std::max(witness, step);
      say(fmt::format("{}@{} is not stored: {} from step {}{}", run, step,
                      cost(end - start, seconds_of(record.lines(start + 1, end))), start,
                      end > step ? fmt::format(", up to step {}, whose digest is the next that the journal has", end)
                                 : ""));
    }
    if (witness == 0) {
      throw std::runtime_error(
          fmt::format("{}@{} cannot be verified: the journal has no digest of step {} or a later one; stored "
                      "steps can be used",
                      run, step, step));
    }
  }
  while (replayer.step() < step) {
    const Advance made = replayer.next();
    if (!made.stop.empty())
      throw std::runtime_error(
          fmt::format("{}@{}: the replay stopped at step {} ({})", run, step, made.step, made.stop));
    const auto line = lines.find(made.step);
    const std::string recorded = line == lines.end() ? "" : digest_of(line->second);
    if (const std::string found = replayer.stepper().state().digest().hex(); !recorded.empty() && found != recorded) {
      throw std::runtime_error(fmt::format(
          "{}@{} is not verified: step {} has digest {}, the journal says {}; `cairn replay {} --from {} --to {}` says "
          "more",
          run, step, made.step, found, recorded, run, start, step));
    }
    if (talk.progress) talk.progress(made.step, made.step - start, step - start);
  }
  return replayer.elapsed() + (replayer.base() < step ? seconds_of(record.lines(replayer.base() + 1, step)) : 0);
}

void confirm(Replayer& replayer, int64_t step) {
  const RunRecord& record = replayer.record();
  const int64_t witness = record.witness(step);
  if (witness <= step) return;
  while (replayer.step() < witness) {
    const Advance made = replayer.next();
    if (!made.stop.empty()) return;  // the run ended here, and so does what is known
  }
  const std::string found = replayer.stepper().state().digest().hex(), recorded = record.digest_of(witness);
  if (found != recorded) {
    throw std::runtime_error(
        fmt::format("{}@{} is not verified: step {}, to which it leads, has digest {}, the journal says {}",
                    record.run().string(), step, witness, found, recorded));
  }
}

std::string cost(int64_t steps, double seconds) {
  return fmt::format("{} step{}, about {}", steps, steps == 1 ? "" : "s", duration(std::max(1.0, seconds)));
}

}  // namespace cairn
