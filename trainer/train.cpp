#include "trainer/train.h"

#include <chrono>

#include "checkpoints/journal.h"
#include "checkpoints/store.h"
#include "trainer/address_cache.h"
#include "trainer/device.h"
#include "trainer/environment.h"
#include "trainer/evaluate.h"
#include "trainer/metrics/series.h"
#include "trainer/restore.h"
#include "trainer/run_files.h"
#include "trainer/signals.h"
#include "trainer/source_order.h"
#include "trainer/stepper.h"
#include "trainer/train_log.h"
#include "trainer/trajectory.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Loop {
 public:
  Loop(const config::RunConfig& config, const fs::path& run, parallel::World& world, bool quiet)
      : config_(config),
        run_(run),
        world_(world),
        console_(quiet || !world.is_first(), !world.is_first()),
        stepper_(config, world),
        log_(console_, stepper_) {}

  TrainReport run(bool resuming) {
    open(resuming);
    const Clock::time_point start = Clock::now();
    const std::optional<int64_t> last = stepper_.last();
    const double elapsed_before = elapsed_;
    TrainReport report{.step = stepper_.step(), .loss = restored_.last_loss, .stopped_by = "end"};
    // A run whose time was up stays where it is.
    const bool over = resuming && config_.train.minutes && world_.any(elapsed_ >= 60 * *config_.train.minutes);
    if (over) report.stopped_by = "minutes";
    // Asked to stop while all was made ready: the state is that of the last step, or of none.
    if (world_.any(Signals::stop())) {
      keep_state(stepper_.state().digest().hex());
      report.stopped_by = "signal";
      finish(report);
      return report;
    }
    while (!over && (!last || stepper_.step() < *last)) {
      const Clock::time_point step_start = Clock::now();
      announce_stage(stepper_.step() + 1);
      Advance made = stepper_.advance();
      elapsed_ = elapsed_before + seconds_since(start);
      if (!made.stop.empty()) return stop_before(made);

      const bool stopped = world_.any(Signals::stop()), wanted = world_.any(Signals::take_save());
      const bool late = config_.train.minutes && world_.any(elapsed_ >= 60 * *config_.train.minutes);
      const bool at_end = stopped || late || (last && made.step == *last);
      const bool scheduled = schedule_.due(made.step, last.value_or(-1));
      const bool due = scheduled || wanted || stopped || (late && config_.checkpoints.at_end) ||
                       (config_.checkpoints.on_event && !made.events.empty());
      Json line = journal_line(made, due || at_end || made.step % config_.checkpoints.digest_every == 0);
      if (line.at("digest").is_string()) check_against_past(made.step, line.at("digest"));
      const double step_seconds = seconds_since(step_start);
      line["seconds"] = step_seconds;
      keep_samples(made.step);
      // Where the best checkpoint is kept, each has to be measured.
      const bool rated = scheduled && config_.checkpoints.keep.best && !config_.checkpoints.keep.all;
      const config::Stage& stage = config_.stage_of(made.step);
      if (at_end || rated || (config_.eval.every > 0 && made.step % config_.eval.every == 0)) evaluate(stage, line);
      if (wanted) made.events.push_back({{"event", "signal"}, {"signal", "SIGUSR1"}});
      if (stopped) made.events.push_back({{"event", "signal"}, {"signal", "stop"}});
      if (!made.events.empty()) line["events"] = made.events;
      write_line(line, stage);
      trajectory_->step(stepper_.state(), due);
      if (due) save(line);
      saver_->check();
      trajectory_->check();
      log_.step(made, step_seconds, elapsed_, stage.train.log_every, at_end);
      report = {.step = made.step,
                .loss = made.result.loss,
                .stopped_by = stopped ? "signal"
                              : late  ? "minutes"
                                      : "end"};
      if (stopped || late) break;
    }
    finish(report);
    return report;
  }

 private:
  // Ends the run at a step whose update was not made: the state is still that of the step before, and is stored.
  TrainReport stop_before(const Advance& made) {
    Json line = journal_line(made, true);
    line["seconds"] = 0.0;
    line["events"] = made.events;
    if (journal_) journal_->append(line);
    keep_state(line.at("digest"));
    const int64_t step = stepper_.step();
    const StepResult& result = made.result;
    console_.warn(fmt::format(
        "step {}: {}; the run stops. The state before it, step {}, is stored: change what has to change in {} "
        "(train.{}: skip, say) and `cairn resume {}`",
        made.step,
        made.stop == "spike"
            ? fmt::format("the loss is {:.4f}, a spike above {:.4f}", result.loss, made.settings.skip_loss_above)
            : fmt::format("loss ({}) or gradient norm ({}) is not finite", result.loss, result.grad_norm),
        step, (run_ / "run.yaml").string(), made.stop == "spike" ? "on_spike.action" : "on_nonfinite", run_.string()));
    return {.step = step, .loss = result.loss, .stopped_by = made.stop};
  }

  // RUN/rollouts/step-N.jsonl: whole under its name, before the journal knows the step.
  void keep_samples(int64_t step) {
    const std::vector<Json> samples = stepper_.objective().samples();
    if (samples.empty() || !world_.is_first()) return;
    std::string text;
    for (const Json& sample : samples) text += sample.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    fs::create_directories(run_ / "rollouts");
    checkpoints::replace_file(run_ / "rollouts" / fmt::format("{}.jsonl", checkpoints::Store::folder_name(step)), text);
  }

  // Stores the state as it is, unless it is stored.
  void keep_state(const std::string& digest) {
    saver_->drain();
    const int64_t step = stepper_.step();
    const bool stored = world_.any(world_.is_first() && fs::exists(store_->path_of(step)));
    if (!stored) save({{"step", step}, {"digest", digest}});
    saver_->drain();
  }

  // What the journal says of the step that was just made.
  Json journal_line(const Advance& made, bool digest) {
    Json line{{"step", made.step},
              {"tokens", stepper_.tokens + (made.stop.empty() ? 0 : made.result.tokens)},
              {"loss", made.result.loss},
              {"grad_norm", made.result.grad_norm},
              {"lr", made.settings.lr}};
    if (made.result.indexer_grad_norm) {
      line["indexer_grad_norm"] = *made.result.indexer_grad_norm;
      line["indexer_lr"] = made.settings.indexer_lr;
    }
    // Of each measure that layers took, its mean by block.
    for (const auto& [key, sum] : made.result.measured.sums)
      if (sum.weight > 0) line["layers"][key.first][std::to_string(key.second)] = sum.sum / sum.weight;
    // Tokens of each expert, where a line can hold them; the probe expert_load measures the others.
    int64_t experts = 0;
    for (const auto& [block, counts] : made.result.measured.experts) experts += counts.numel();
    for (const auto& [block, counts] : made.result.measured.experts) {
      if (experts > 1024) break;
      const int64_t* count = counts.const_data_ptr<int64_t>();
      line["expert_tokens"][std::to_string(block)] = std::vector<int64_t>(count, count + counts.numel());
    }
    if (made.settings.z_loss > 0) line["z_loss"] = made.result.z_loss;
    if (made.result.mtp_loss) line["mtp_loss"] = *made.result.mtp_loss;
    line["accuracy"] = made.result.accuracy;
    line["batch"] = {
        {"seed", config_.seed.data}, {"rows", made.settings.batch}, {"context", stepper_.data().context(made.step)}};
    if (const Json metrics = stepper_.objective().metrics(); metrics.is_object()) line["metrics"] = metrics;
    if (world_.size > 1) line["ranks"] = world_.size;
    if (parent_.is_object() && parent_.at("step") == made.step - 1)  // the first step of a fork
      line["parent"] = {{"run", parent_.at("run")}, {"step", parent_.at("step")}};
    line["digest"] = digest ? Json(stepper_.state().digest().hex()) : Json();
    return line;
  }

  // Everything up to the first step: data, model, optimizer, journal; for a resume also the last committed state.
  void open(bool resuming) {
    const bool writes = world_.is_first();
    if (writes) {
      if (!resuming && (fs::exists(run_ / "run.yaml") || fs::exists(run_ / "journal.jsonl"))) {
        throw std::runtime_error(fmt::format(
            "{} holds a run already: `cairn resume {}` goes on with it, or choose another folder with --run",
            run_.string(), run_.string()));
      }
      store_.emplace(run_, checkpoints::Store::Mode::write);
    }
    if (writes && resuming) {
      // The steps that were made are those of the state that it goes on from.
      const auto stored = store_->list();
      check_order(run_, config_, stored.empty() ? 0 : stored.back().step);
      for (const Json& change : changed_settings(run_, config_)) {
        console_.warn(fmt::format("run.yaml was changed: {} is {} now, was {}", change.at("key").get<std::string>(),
                                  change.at("now").dump(), change.at("was").dump()));
      }
    }
    world_.barrier();
    if (!writes) store_.emplace(run_, checkpoints::Store::Mode::read);

    // Ranks after the first find the tokens in the cache.
    auto prepare = [&] {
      const auto progress = [&](const data::Progress& p) {
        console_.progress(fmt::format("{} {}: {} of {} bytes, {} tokens", p.phase, p.source, count(p.bytes),
                                      count(p.total_bytes), count(p.tokens)));
      };
      stepper_.prepare(progress, resuming ? run_ : fs::path());
    };
    if (writes) {
      prepare();
      if (resuming) check_sources(run_, stepper_.data());
    }
    world_.barrier();
    if (!writes) prepare();
    schedule_ = checkpoint_schedule(config_.checkpoints);
    for (const std::string& line : doubtful_settings(config_, *stepper_.tokenizer(), stepper_.last()))
      console_.warn(line);
    stepper_.open();
    if (resuming) {
      restored_ = restore(stepper_, *store_, world_, console_);
      parent_ = read_build(run_).value("parent", Json());
    } else {
      stepper_.initialise();
    }
    elapsed_ = restored_.elapsed;
    const int64_t from = stepper_.step();

    signals_.emplace();  // from here on there is a state to keep
    const at::Device device = stepper_.state().device();
    if (const std::string warning = device_warning(device); !warning.empty()) console_.warn(warning);
    // Cut before the journal is: what it holds is never ahead of the journal.
    trajectory_ =
        std::make_unique<TrajectoryHook>(config_, run_, stepper_.state(), writes, restored_.loaded ? from : -1);
    if (writes) {
      Json build = build_info();
      build["device"] = device_name(device);
      // What the digests hang on besides settings, machine and libraries.
      if (device.is_cpu() && config_.train.precision != "float32") build["depends_on"] = {"threads"};
      for (const std::string& note : write_run_files(run_, config_, build, stepper_.data(), resuming, from))
        console_.warn(note);
      journal_.emplace(run_ / "journal.jsonl");
      if (resuming) {
        // In this order a crash between the two leaves no checkpoint that the journal does not know.
        const int64_t kept = restored_.loaded ? from : -1;
        store_->truncate_after(kept);
        journal_->truncate_after(from);
        // What was rebuilt or measured of the steps that go.
        drop_cached_after(run_, kept);
        for (const char* area : {"probes", "analysis"})
          for (const std::string& fault : cut_series(run_ / area, kept)) console_.warn(fault);
      }
      if (config_.metrics.tensorboard) log_.open_board(run_ / "tensorboard", resuming ? from + 1 : -1);
    }
    stepper_.enter_stage(from + 1);
    State& state = stepper_.state();
    saver_ = std::make_unique<Saver>(*store_, config_, *stepper_.tokenizer(), config_.checkpoints.async);
    if (config_.checkpoints.async) saver_->reserve(state);
    saver_->before_commit = [this] { trajectory_->drain(); };
    if (!restored_.loaded) {
      const bool due = schedule_.due(0, stepper_.last().value_or(-1));
      trajectory_->step(state, due);
      if (due) save({{"step", 0}, {"digest", state.digest().hex()}});
    }
    log_.start(run_, world_.size, resuming);
    const at::ScalarType products = product_type(config_.stages.front().train.precision);
    log_.set_peak([device, products, ranks = world_.size] {
      return (device.is_cpu() ? sgemm_peak_gflops(0.05) : device_peak_gflops(device, products, 0.05)) * ranks;
    });
    stage_ = &config_.stage_of(from + 1);
  }

  void announce_stage(int64_t step) {
    const config::Stage& stage = config_.stage_of(step);
    if (&stage != stage_ && config_.staged) console_.line(fmt::format("stage {} from step {}", stage.name, step));
    stage_ = &stage;
  }

  // A step that was computed before, by the run that ended, has to come out the same.
  void check_against_past(int64_t step, const std::string& digest) {
    const auto found = restored_.digests.find(step);
    if (found == restored_.digests.end() || found->second.empty() || found->second == digest || warned_) return;
    warned_ = true;
    console_.warn(
        fmt::format("warning: step {} has digest {}, but had {} before: the machine or its libraries differ from those "
                    "in build.json, or run.yaml was changed",
                    step, digest, found->second));
  }

  void evaluate(const config::Stage& stage, Json& line) {
    models::Pass like;
    like.products = product_type(stage.train.precision);
    like.reference = stage.train.kernels == "reference";
    like.aten = stage.train.kernels == "aten";
    like.indexer = indexer_pass(stage);
    like.indexer.train = false;
    if (config_.objective == "grpo") {
      const Json found = stepper_.objective().evaluate(
          stepper_.state(), step_settings(config_, stage, stepper_.step(), stepper_.last()), config_.eval.sequences);
      if (!found.is_object()) return;
      line["task"] = found;
      console_.line(fmt::format("step {:>5}  {}: accuracy {:.1f}% ± {:.1f}, of {} held-out problems", stepper_.step(),
                                config_.task.name, 100 * found.at("accuracy").get<double>(),
                                100 * found.at("standard_error").get<double>(), found.at("problems").get<int64_t>()));
      return;
    }
    const data::Dataset& data = stepper_.data();
    for (const std::string& set : data.validation_names()) {
      const Evaluation e = evaluate_set(stepper_.state().model(), data, set, config_.eval.sequences,
                                        stage.train.micro_batch, stage.data.context, stepper_.tokenizer().get(), like);
      line["eval"][set] = {{"nll", e.nll}, {"bits_per_byte", e.bits_per_byte}, {"tokens", e.tokens}};
      console_.line(fmt::format("step {:>5}  {}: {:.4f} nats a token, {:.3f} bits a byte", stepper_.step(), set, e.nll,
                                e.bits_per_byte));
    }
  }

  void write_line(const Json& line, const config::Stage& stage) {
    if (!journal_) return;
    journal_->append(line);
    const auto& sample = stage.train.sample;
    if (sample.every > 0 && stepper_.step() % sample.every == 0) log_.sample(sample);
    log_.curves(line);
  }

  void save(const Json& line) {
    if (journal_) journal_->sync();  // what the checkpoint's step says is on the disk before the checkpoint is
    trajectory_->seal();
    const int64_t step = stepper_.step();
    const Json state_json{{"step", step},
                          {"updates", stepper_.state().updates()},
                          {"tokens", stepper_.tokens},
                          {"elapsed", elapsed_},
                          {"digest", line.at("digest")}};
    Json about{{"kind", "full"}, {"step", step}, {"digest", line.at("digest")}};
    if (line.contains("eval")) {
      double sum = 0;
      for (const auto& [set, values] : line.at("eval").items()) {
        about["metrics"][set + "_nll"] = values.at("nll");
        sum += values.at("nll").get<double>();
      }
      about["metrics"][kMeanLoss] = sum / line.at("eval").size();
    }
    saver_->save(stepper_.state(), state_json, about);
  }

  void finish(const TrainReport& report) {
    saver_->drain();
    if (journal_) journal_->sync();
    trajectory_->finish();
    log_.flush();
    world_.barrier();
    const auto stored = store_->list();
    console_.line(fmt::format("{} at step {}: {}{} tokens in {}; {} checkpoint{}, the last is {}",
                              report.stopped_by == "end" ? "done" : "stopped by " + report.stopped_by, report.step,
                              report.step > 0 ? fmt::format("loss {:.4f}, ", report.loss) : "", count(stepper_.tokens),
                              duration(elapsed_), stored.size(), stored.size() == 1 ? "" : "s",
                              stored.empty() ? "none" : stored.back().path.string()));
  }

  const config::RunConfig& config_;
  fs::path run_;
  parallel::World& world_;
  Console console_;
  Stepper stepper_;
  TrainLog log_;
  std::optional<checkpoints::Store> store_;
  std::optional<checkpoints::Journal> journal_;
  std::unique_ptr<TrajectoryHook> trajectory_;
  std::unique_ptr<Saver> saver_;  // after what it refers to: its thread ends first
  checkpoints::Schedule schedule_;
  const config::Stage* stage_ = nullptr;  // the last one that was announced
  Restored restored_;
  Json parent_;  // of a fork: {"run", "step"}
  std::optional<Signals> signals_;
  bool warned_ = false;
  double elapsed_ = 0;
};

}  // namespace

TrainReport start_run(const config::RunConfig& config, const fs::path& run, parallel::World& world, bool quiet) {
  return Loop(config, run, world, quiet).run(false);
}

TrainReport resume_run(const fs::path& run, parallel::World& world, bool quiet) {
  if (!fs::exists(run / "run.yaml"))
    throw std::runtime_error(fmt::format("{}: no run here (no run.yaml)", run.string()));
  const config::RunConfig config = config::load(run / "run.yaml");
  return Loop(config, run, world, quiet).run(true);
}

}  // namespace cairn
