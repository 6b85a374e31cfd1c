#include "trainer/replay.h"

#include <chrono>

#include "trainer/device.h"
#include "trainer/environment.h"
#include "trainer/replay_steps.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using Kind = ReplayFault::Kind;

std::string digest_of(const Json& line) {
  return line.contains("digest") && line.at("digest").is_string() ? line.at("digest").get<std::string>() : "";
}

// What may have changed a step's bits, the likely things first.
std::vector<std::string> likely_causes(const RunRecord& record, Stepper& stepper, int64_t step) {
  std::vector<std::string> causes;
  try {
    stepper.data().verify();
  } catch (const std::exception& error) {
    causes.push_back(fmt::format("the data: {}", error.what()));
  }
  const Json was = machine_after(record.build(), step - 1);
  Json now = build_info();
  now["device"] = device_name(stepper.state().device());
  for (const std::string& difference : machine_differences(was, now, true)) causes.push_back(difference);
  if (causes.empty()) {
    for (const std::string& difference : machine_differences(was, now))
      causes.push_back(difference + " (which should change no bit)");
    causes.push_back(
        "nothing that build.json records differs: the step before, this one or its data were changed on "
        "the disk, or in memory by a fault");
  }
  return causes;
}

class Replay {
 public:
  Replay(const RunRecord& record, const ReplayOptions& options) : record_(record), options_(options) {}

  ReplayReport run() {
    report_.from = options_.from;
    report_.to = check_range(record_, options_);
    Replayer replayer(record_);
    report_.start = replayer.begin(options_.from, false);
    for (const auto& damaged : replayer.damaged()) note_damaged(damaged);
    lines_ = record_.lines(report_.start + 1, report_.to);
    stored_ = record_.stored();
    const int64_t total = report_.to - report_.start;
    if (options_.say)
      options_.say(fmt::format("{} from {}", cost(total, seconds_of(lines_)),
                               report_.start > 0 ? fmt::format("step {}", report_.start) : "the initialisation"));
    StepObserver* observer = nullptr;
    if (options_.observer) observer = options_.observer(replayer.stepper());
    const auto begin = Clock::now();
    while (replayer.step() < report_.to && !stop_) {
      const Advance made = replayer.next(wanted(replayer.step() + 1) ? observer : nullptr);
      if (!made.stop.empty()) {
        report_.faults.push_back(
            {.step = made.step,
             .message = fmt::format("step {} ends the replay ({}), where the run went on", made.step, made.stop),
             .causes = likely_causes(record_, replayer.stepper(), made.step)});
        break;
      }
      if (wanted(made.step)) report_.replayed += 1;
      check(replayer.stepper(), made);
      report_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      if (options_.progress) options_.progress({made.step, made.step - report_.start, total, report_.seconds});
    }
    if (open_) close(replayer.stepper());
    std::stable_sort(report_.faults.begin(), report_.faults.end(),
                     [](const auto& a, const auto& b) { return a.step < b.step; });
    return std::move(report_);
  }

 private:
  // Steps before `from` are made on the way there alone.
  bool wanted(int64_t step) const { return step > options_.from; }

  void note_damaged(const Replayer::Damaged& damaged) {
    report_.faults.push_back({.step = damaged.step,
                              .kind = Kind::checkpoint,
                              .message = fmt::format("{} is damaged: {}", damaged.folder.string(), damaged.fault),
                              .folder = damaged.folder.string()});
  }

  void check(Stepper& stepper, const Advance& made) {
    const auto at = lines_.find(made.step);
    const std::string recorded = at == lines_.end() ? "" : digest_of(at->second);
    if (!recorded.empty()) {
      report_.compared += 1;
      const std::string replayed = stepper.state().digest().hex();
      if (replayed == recorded) {
        if (open_) blame_journal();
        check_numbers(at->second, made, stepper.tokens);
      } else if (!open_) {
        open_ = ReplayFault{.step = made.step, .recorded = recorded, .replayed = replayed};
        open_->message = fmt::format("step {} has digest {}, the journal says {}{}", made.step, replayed, recorded,
                                     number_note(at->second, made));
      }
    }
    // Where settings change, what is stored may be the state under the new ones.
    const auto stored = stored_.find(made.step);
    if (stored != stored_.end() && record_.settings_until(made.step) != made.step) compare(stepper, stored->second);
  }

  // The digest fits, so the step is the same; what else its line says has to be, too.
  void check_numbers(const Json& line, const Advance& made, int64_t tokens) {
    const Json now{
        {"tokens", tokens}, {"loss", made.result.loss}, {"grad_norm", made.result.grad_norm}, {"lr", made.settings.lr}};
    for (const auto& [key, value] : now.items()) {
      if (!line.contains(key) || line.at(key) == value || (line.at(key).is_null() && !made.result.finite)) continue;
      report_.faults.push_back(
          {.step = made.step,
           .kind = Kind::journal,
           .message = fmt::format("the journal's line of step {} says {} {}, the step has {}, while "
                                  "its digest fits: the line was changed",
                                  made.step, key, line.at(key).dump(), value.dump())});
    }
  }

  static std::string number_note(const Json& line, const Advance& made) {
    if (!line.contains("loss") || !line.at("loss").is_number()) return "";
    const double loss = line.at("loss").get<double>(), norm = line.value("grad_norm", 0.0);
    if (loss != made.result.loss) return fmt::format("; the loss is {}, was {}", made.result.loss, loss);
    if (norm != made.result.grad_norm)
      return fmt::format("; the loss is the same, the gradient norm is {}, was {}", made.result.grad_norm, norm);
    return "; loss and gradient norm are the same";
  }

  void blame_journal() {
    open_->kind = Kind::journal;
    open_->message = fmt::format(
        "the journal's line of step {} has digest {}, the step has {}, and the states after it "
        "agree: the line was changed",
        open_->step, open_->recorded, open_->replayed);
    report_.faults.push_back(*open_);
    open_.reset();
  }

  void compare(Stepper& stepper, const std::filesystem::path& folder) {
    report_.checkpoints += 1;
    const int64_t step = stepper.step();
    std::optional<TensorDifference> difference;
    std::string fault;
    try {
      difference = first_difference(stepper.state(), folder);
    } catch (const std::exception& error) {
      fault = error.what();
    }
    if (open_) {
      if (difference) {
        open_->tensor = difference;
        open_->folder = folder.string();
        close(stepper);
        stop_ = true;  // the steps that follow differ because this one does
        return;
      }
      if (fault.empty()) blame_journal();
      return;
    }
    if (const auto found = checkpoints::verify_folder(folder); found && fault.empty()) {
      if (found->problem != "extra") fault = found->message();
    }
    if (!difference && fault.empty()) return;
    auto known = std::find_if(report_.faults.begin(), report_.faults.end(), [&](const ReplayFault& f) {
      return f.kind == Kind::checkpoint && f.folder == folder.string();
    });
    if (known == report_.faults.end()) {
      note_damaged({step, folder, fault.empty() ? "it does not hold the state of its step" : fault});
      known = report_.faults.end() - 1;
    }
    known->tensor = difference;
  }

  // A step that differs, with all that is known of it by now.
  void close(Stepper& stepper) {
    open_->causes = likely_causes(record_, stepper, open_->step);
    report_.faults.push_back(*open_);
    open_.reset();
  }

  const RunRecord& record_;
  const ReplayOptions& options_;
  ReplayReport report_;
  std::map<int64_t, Json> lines_;
  std::map<int64_t, std::filesystem::path> stored_;
  std::optional<ReplayFault> open_;  // a digest that differs, until what follows tells why
  bool stop_ = false;
};

}  // namespace

std::optional<int64_t> ReplayReport::first_divergence() const {
  return faults.empty() ? std::nullopt : std::optional(faults.front().step);
}

int64_t check_range(const RunRecord& record, const ReplayOptions& options) {
  const std::string run = record.run().string();
  if (!record.has_journal()) {
    throw std::runtime_error(
        fmt::format("{}: there is no journal.jsonl in it, so a replay has nothing to be compared "
                    "with; `cairn verify` checks what is stored",
                    run));
  }
  const int64_t last = record.last_step(), to = options.to.value_or(last);
  if (options.from < 0 || to < options.from || to > last) {
    throw std::invalid_argument(
        fmt::format("replay from {} to {}: expected two steps, in this order, from 0 to {}, "
                    "where the journal of {} ends",
                    options.from, to, last, run));
  }
  const auto lines = record.lines(options.from + 1, to);
  const bool any = std::any_of(lines.begin(), lines.end(), [](const auto& l) { return !digest_of(l.second).empty(); });
  if (!any && to > options.from) {
    throw std::runtime_error(fmt::format(
        "{}: the journal has no digest of the steps {} to {}: nothing would be verified", run, options.from + 1, to));
  }
  return to;
}

ReplayReport replay(const RunRecord& record, const ReplayOptions& options) { return Replay(record, options).run(); }

Json to_json(const ReplayFault& fault) {
  static constexpr const char* kKinds[] = {"step", "journal", "checkpoint"};
  Json json{{"step", fault.step}, {"kind", kKinds[static_cast<int>(fault.kind)]}, {"message", fault.message}};
  if (!fault.recorded.empty()) json["recorded"] = fault.recorded, json["replayed"] = fault.replayed;
  if (fault.tensor) {
    const TensorDifference& t = *fault.tensor;
    json["tensor"] = {{"name", t.name},         {"index", t.index}, {"stored", t.stored},  {"replayed", t.replayed},
                      {"elements", t.elements}, {"numel", t.numel}, {"tensors", t.tensors}};
  }
  if (!fault.folder.empty()) json["folder"] = fault.folder;
  if (!fault.causes.empty()) json["causes"] = fault.causes;
  return json;
}

Json to_json(const ReplayReport& report) {
  const auto first = report.first_divergence();
  Json json{{"replayed", report.replayed},
            {"verified", report.verified()},
            {"first_divergence", first ? Json(*first) : Json()},
            {"from", report.from},
            {"to", report.to},
            {"start", report.start},
            {"compared", report.compared},
            {"checkpoints", report.checkpoints},
            {"seconds", report.seconds}};
  json["faults"] = Json::array();
  for (const ReplayFault& fault : report.faults) json["faults"].push_back(to_json(fault));
  return json;
}

}  // namespace cairn
