#include "trainer/train.h"

#include <chrono>
#include <deque>

#include "checkpoints/journal.h"
#include "checkpoints/store.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/evaluate.h"
#include "trainer/flops.h"
#include "trainer/generate.h"
#include "trainer/metrics/tensorboard.h"
#include "trainer/model_io.h"
#include "trainer/run_files.h"
#include "trainer/setup.h"
#include "trainer/signals.h"
#include "trainer/step.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Loop {
 public:
  Loop(const config::RunConfig& config, const fs::path& run, parallel::World& world, bool quiet)
      : config_(config), run_(run), world_(world), console_(quiet || !world.is_first(), !world.is_first()) {}

  TrainReport run(bool resuming) {
    open(resuming);
    const Signals signals;
    const Clock::time_point start = Clock::now();
    const double elapsed_before = elapsed_;
    TrainReport report{.step = state_->step, .loss = last_loss_, .stopped_by = "end"};
    // A run whose time was up stays where it is.
    const bool over = resuming && config_.train.minutes && world_.any(elapsed_ >= 60 * *config_.train.minutes);
    if (over) report.stopped_by = "minutes";
    while (!over && (!last_ || state_->step < *last_)) {
      const Clock::time_point step_start = Clock::now();
      const config::Stage& stage = enter_stage(state_->step + 1);
      StepSettings settings = step_settings(config_, stage, state_->step + 1, last_);
      const double threshold = spike_threshold(stage.train.on_spike);
      // Neither a step that is skipped nor one that ends the run moves the weights.
      settings.skip_loss_above = threshold;
      const StepResult result = train_step(*state_, step_data(*data_, state_->step + 1), settings);
      elapsed_ = elapsed_before + seconds_since(start);
      tokens_ += result.tokens;

      Json events = Json::array();
      const bool spike = threshold > 0 && result.loss > threshold;
      if (!result.finite) events.push_back({{"event", "nonfinite"}, {"action", stage.train.on_nonfinite}});
      if (result.finite && spike)
        events.push_back({{"event", "spike"}, {"threshold", threshold}, {"action", stage.train.on_spike.action}});
      std::string stop;
      if (!result.finite && stage.train.on_nonfinite == "stop") stop = "nonfinite";
      if (result.finite && spike && stage.train.on_spike.action == "stop") stop = "spike";
      if (!stop.empty()) return stop_before(stop, result, settings, events);
      if (result.finite) remember_loss(result.loss, stage.train.on_spike.window);

      Json line = journal_line(result, settings);
      const bool stopped = world_.any(Signals::stop()), wanted = world_.any(Signals::take_save());
      const bool late = config_.train.minutes && world_.any(elapsed_ >= 60 * *config_.train.minutes);
      const bool at_end = stopped || late || (last_ && state_->step == *last_);
      check_against_past(line.at("digest"));
      const double step_seconds = seconds_since(step_start);
      line["seconds"] = step_seconds;
      // Where the best checkpoint is kept, each has to be measured.
      const bool scheduled = schedule_.due(state_->step, last_.value_or(-1));
      const bool rated = scheduled && config_.checkpoints.keep.best && !config_.checkpoints.keep.all;
      if (at_end || rated || (config_.eval.every > 0 && state_->step % config_.eval.every == 0)) evaluate(stage, line);
      if (wanted) events.push_back({{"event", "signal"}, {"signal", "SIGUSR1"}});
      if (stopped) events.push_back({{"event", "signal"}, {"signal", "stop"}});
      if (!events.empty()) line["events"] = events;
      write_line(line, stage);
      const bool due = scheduled || wanted || stopped || (late && config_.checkpoints.at_end) ||
                       (config_.checkpoints.on_event && !events.empty());
      if (due) save(line);
      saver_->check();
      show(result, settings, step_seconds, stage.train, at_end);
      report = {.step = state_->step, .loss = result.loss, .stopped_by = stopped ? "signal" : late ? "minutes" : "end"};
      if (stopped || late) break;
    }
    finish(report);
    return report;
  }

 private:
  // Ends the run at a step whose update was not made: the state is still that of the step before, and is stored.
  TrainReport stop_before(const std::string& why, const StepResult& result, const StepSettings& settings,
                          const Json& events) {
    Json line = journal_line(result, settings);
    line["seconds"] = 0.0;
    line["events"] = events;
    if (journal_) journal_->append(line);
    const std::string digest = line.at("digest");
    tokens_ -= result.tokens;
    state_->step -= 1;
    saver_->drain();
    const bool stored = world_.any(world_.is_first() && fs::exists(store_->path_of(state_->step)));
    if (!stored) save({{"step", state_->step}, {"digest", digest}});
    saver_->drain();
    console_.warn(fmt::format(
        "step {}: {}; the run stops. The state before it, step {}, is stored: change what has to change in {} "
        "(train.{}: skip, say) and `cairn resume {}`",
        state_->step + 1,
        why == "spike" ? fmt::format("the loss is {:.4f}, a spike above {:.4f}", result.loss, settings.skip_loss_above)
                       : fmt::format("loss ({}) or gradient norm ({}) is not finite", result.loss, result.grad_norm),
        state_->step, (run_ / "run.yaml").string(), why == "spike" ? "on_spike.action" : "on_nonfinite",
        run_.string()));
    return {.step = state_->step, .loss = result.loss, .stopped_by = why};
  }

  // What the journal says of the step that was just made.
  Json journal_line(const StepResult& result, const StepSettings& settings) {
    Json line{{"step", state_->step},
              {"tokens", tokens_},
              {"loss", result.loss},
              {"grad_norm", result.grad_norm},
              {"lr", settings.lr}};
    if (settings.z_loss > 0) line["z_loss"] = result.z_loss;
    line["accuracy"] = result.accuracy;
    line["batch"] = {{"seed", config_.seed.data}, {"rows", settings.batch}, {"context", data_->context(state_->step)}};
    if (world_.size > 1) line["ranks"] = world_.size;
    line["digest"] = state_->digest().hex();
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
      for (const Json& change : changed_settings(run_, config_)) {
        console_.warn(fmt::format("run.yaml was changed: {} is {} now, was {}", change.at("key").get<std::string>(),
                                  change.at("now").dump(), change.at("was").dump()));
      }
    }
    world_.barrier();
    if (!writes) store_.emplace(run_, checkpoints::Store::Mode::read);

    // Ranks after the first find the tokens in the cache.
    auto prepare = [&] {
      tokenizer_ = make_tokenizer(config_);
      decoder_config_ = make_decoder_config(config_, *tokenizer_);
      data_ = make_dataset(config_, tokenizer_, [&](const data::Progress& p) {
        console_.progress(fmt::format("{} {}: {} of {} bytes, {} tokens", p.phase, p.source, count(p.bytes),
                                      count(p.total_bytes), count(p.tokens)));
      });
    };
    if (writes) {
      prepare();
      if (resuming) check_sources(run_, *data_);
    }
    world_.barrier();
    if (!writes) prepare();
    last_ = last_step(config_, *data_);
    check_schedules(config_, last_);
    schedule_ = checkpoint_schedule(config_.checkpoints);
    check_machine();

    const config::Stage& first = config_.stages.front();
    state_ = std::make_unique<State>(decoder_config_, weight_type(first.train.precision), world_, first.train.lanes,
                                     config_.parallel.zero);
    if (config_.model.from) {
      const fs::path folder = model_folder(*config_.model.from);
      load_weights(state_->model(), checkpoints::ModelWeights::open(folder), folder.string());
    } else {
      state_->model().parameters().initialise(config_.seed.init);
    }
    int64_t from = 0;
    if (resuming) from = restore();
    enter_stage(state_->step + 1);

    if (writes) {
      write_run_files(run_, config_, build_info(), *data_, resuming, from);
      journal_.emplace(run_ / "journal.jsonl");
      if (resuming) {
        // In this order a crash between the two leaves no checkpoint that the journal does not know.
        store_->truncate_after(restored_ ? from : -1);
        journal_->truncate_after(from);
      }
      if (config_.metrics.tensorboard) board_.emplace(run_ / "tensorboard", resuming ? from + 1 : -1);
    }
    saver_ = std::make_unique<Saver>(*store_, config_, *tokenizer_, config_.checkpoints.async);
    if (config_.checkpoints.async && writes && config_.parallel.zero == 0) saver_->reserve(*state_);
    if (!restored_ && schedule_.due(0, last_.value_or(-1))) save({{"step", 0}, {"digest", state_->digest().hex()}});
    if (resuming) {
      console_.line(fmt::format("resuming {} at step {}{}", run_.string(), state_->step,
                                last_ ? fmt::format(" of {}", *last_) : ""));
    } else {
      const auto& numbers = state_->model().parameters();
      int64_t train_tokens = 0;
      for (int32_t i = 0; i < data_->source_count(); ++i) train_tokens += data_->source(i).train_tokens;
      console_.line(
          fmt::format("{} {}, {} parameters, vocabulary {} · {} training tokens · {} threads × {} ranks · run {}",
                      decoder_config_.model_type, config_.objective, count(numbers.numel()), decoder_config_.vocab_size,
                      count(train_tokens), at::get_num_threads(), world_.size, run_.string()));
    }
    peak_ = sgemm_peak_gflops(0.05) * world_.size;
  }

  // What this machine, or this number of ranks, cannot do is refused before anything is computed.
  void check_machine() {
    for (const auto& stage : config_.stages) {
      if (stage.train.device == "cuda")
        config_.fail("train.device", "training on a GPU is not there yet: use cpu or auto");
    }
    for (const auto& stage : config_.stages) {
      if (stage.train.lanes % world_.size) {
        config_.fail("train.lanes", fmt::format("found {}, expected a multiple of the number of ranks ({})",
                                                stage.train.lanes, world_.size));
      }
      if (stage.train.lanes != config_.stages.front().train.lanes ||
          stage.train.precision != config_.stages.front().train.precision) {
        config_.fail("stages", "train.lanes and train.precision cannot change inside a run");
      }
    }
    if (config_.parallel.data > 0 && config_.parallel.data != world_.size) {
      config_.fail("parallel.data",
                   fmt::format("found {}, but {} ranks were started", config_.parallel.data, world_.size));
    }
    if (config_.parallel.zero > 0 && config_.optim.name == "muon" && world_.size > 1) {
      config_.fail(
          "parallel.zero",
          "muon needs whole matrices on a rank, which a sharded optimizer does not have: use zero: 0 or adamw");
    }
    world_.agree("the configuration", config::to_yaml(config_));
  }

  // Loads the newest state that is whole and that the journal knows; returns its step (0: from the initialisation).
  int64_t restore() {
    int64_t step = 0;
    std::string folder;
    if (world_.is_first()) {
      const auto index = checkpoints::index_journal(run_ / "journal.jsonl");
      const int64_t known = index.lines.empty() ? 0 : index.lines.back().step;
      if (const auto stored = store_->list(); !stored.empty() && stored.back().step > known) {
        throw std::runtime_error(fmt::format(
            "{}: the journal ends at step {}, but checkpoints up to step {} are stored: put journal.jsonl back, or "
            "start a new run from {} (model.from)",
            run_.string(), known, stored.back().step, stored.back().path.string()));
      }
      const auto newest = store_->newest_valid(known);
      for (const auto& damaged : newest.damaged) {
        console_.warn(fmt::format("checkpoint step {} is damaged ({}): going back to {}", damaged.step,
                                  damaged.fault.message(),
                                  newest.step ? fmt::format("step {}", newest.step->step) : "the initialisation"));
      }
      if (newest.step) folder = newest.step->path.string();
    }
    folder = world_.broadcast(folder);
    restored_ = !folder.empty();
    if (restored_) {
      // The optimizer of the stage that the state was saved in.
      const auto stored = checkpoints::Store::step_of(fs::path(folder).filename().string()).value_or(0);
      enter_stage(std::max<int64_t>(stored, 1));
      const Json saved = load_state(*state_, folder);
      step = state_->step;
      tokens_ = saved.at("tokens").get<int64_t>();
      elapsed_ = saved.at("elapsed").get<double>();
      const std::string digest = state_->digest().hex();
      if (const auto recorded = saved.value("digest", digest); recorded != digest) {
        throw std::runtime_error(fmt::format(
            "{}: the state that was loaded has digest {}, the one that was saved had {}", folder, digest, recorded));
      }
    }
    // The losses that the spike rule looks at, and the digests of steps that are computed again.
    for (const Json& line : checkpoints::read_journal(run_ / "journal.jsonl")) {
      const auto n = line.at("step").get<int64_t>();
      bool finite = true, ended = false;
      for (const Json& event : line.value("events", Json::array())) {
        finite &= event.value("event", "") != "nonfinite";
        ended |= event.value("action", "") == "stop";
      }
      if (n > step) {
        if (!ended) past_digests_[n] = line.value("digest", "");
        continue;
      }
      if (line.at("loss").is_number()) last_loss_ = line.at("loss").get<double>();
      if (finite && line.at("loss").is_number()) {
        remember_loss(line.at("loss").get<double>(), config_.stage_of(n).train.on_spike.window);
      }
    }
    world_.barrier();
    return step;
  }

  const config::Stage& enter_stage(int64_t step) {
    const config::Stage& stage = config_.stage_of(step);
    if (&stage != stage_) {
      if (stage_ && config_.staged) console_.line(fmt::format("stage {} from step {}", stage.name, step));
      state_->set_optimizer(optimizer_options(stage), stage.optim.ema);
      state_->model().set_activation_checkpointing(stage.train.activation_checkpointing);
      stage_ = &stage;
    }
    return stage;
  }

  void remember_loss(double loss, int window) {
    losses_.push_back(loss);
    while (losses_.size() > static_cast<size_t>(window)) losses_.pop_front();
  }

  // 0 where there is no rule or too little past.
  double spike_threshold(const config::SpikeOptions& options) const {
    if (options.action == "none" || losses_.size() < static_cast<size_t>(options.window)) return 0;
    std::vector<double> sorted(losses_.begin(), losses_.end());
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    return options.factor * sorted[sorted.size() / 2];
  }

  // A step that was computed before, by the run that ended, has to come out the same.
  void check_against_past(const std::string& digest) {
    const auto found = past_digests_.find(state_->step);
    if (found == past_digests_.end() || found->second.empty() || found->second == digest || warned_) return;
    warned_ = true;
    console_.warn(
        fmt::format("warning: step {} has digest {}, but had {} before: the machine or its libraries differ from those "
                    "in build.json, or run.yaml was changed",
                    state_->step, digest, found->second));
  }

  void evaluate(const config::Stage& stage, Json& line) {
    models::Pass like;
    like.products = product_type(stage.train.precision);
    like.reference = stage.train.kernels == "reference";
    for (const std::string& set : data_->validation_names()) {
      const Evaluation e = evaluate_set(state_->model(), *data_, set, config_.eval.sequences, stage.train.micro_batch,
                                        stage.data.context, tokenizer_.get(), like);
      line["eval"][set] = {{"nll", e.nll}, {"bits_per_byte", e.bits_per_byte}, {"tokens", e.tokens}};
      console_.line(fmt::format("step {:>5}  {}: {:.4f} nats a token, {:.3f} bits a byte", state_->step, set, e.nll,
                                e.bits_per_byte));
    }
  }

  void write_line(const Json& line, const config::Stage& stage) {
    if (!journal_) return;
    journal_->append(line);
    const int64_t step = state_->step;
    const auto& sample = stage.train.sample;
    if (sample.every > 0 && step % sample.every == 0) write_sample(sample);
    if (!board_) return;
    for (const char* key : {"loss", "grad_norm", "lr", "accuracy"}) {
      if (line.contains(key) && line.at(key).is_number())
        board_->scalar(fmt::format("train/{}", key), line.at(key).get<double>(), step);
    }
    if (line.contains("eval")) {
      for (const auto& [set, values] : line.at("eval").items()) {
        board_->scalar(fmt::format("eval/{}/nll", set), values.at("nll").get<double>(), step);
        board_->scalar(fmt::format("eval/{}/bits_per_byte", set), values.at("bits_per_byte").get<double>(), step);
      }
    }
  }

  void write_sample(const config::SampleOptions& options) {
    std::vector<int32_t> prompt = tokenizer_->encode(options.prompt, true);
    if (prompt.empty() && tokenizer_->eos_id()) prompt = {*tokenizer_->eos_id()};
    if (prompt.empty()) prompt = {0};
    const Generation g = Generator(state_->model(), *tokenizer_)
                             .run(prompt, {.max_tokens = options.tokens,
                                           .temperature = options.temperature,
                                           .seed = config_.seed.sample + state_->step});
    console_.line(fmt::format("  sample: {}{}", options.prompt, g.text));
    if (board_) board_->text("sample", options.prompt + g.text, state_->step);
  }

  void save(const Json& line) {
    if (journal_) journal_->sync();  // what the checkpoint's step says is on the disk before the checkpoint is
    const Json state_json{{"step", state_->step},
                          {"updates", state_->optimizer().steps_done()},
                          {"tokens", tokens_},
                          {"elapsed", elapsed_},
                          {"digest", line.at("digest")}};
    Json about{{"kind", "full"}, {"step", state_->step}, {"digest", line.at("digest")}};
    if (line.contains("eval")) {
      double sum = 0;
      for (const auto& [set, values] : line.at("eval").items()) {
        about["metrics"][set + "_nll"] = values.at("nll");
        sum += values.at("nll").get<double>();
      }
      about["metrics"][kMeanLoss] = sum / line.at("eval").size();
    }
    saver_->save(*state_, state_json, about, world_.is_first());
  }

  void show(const StepResult& result, const StepSettings& settings, double step_seconds,
            const config::TrainOptions& options, bool at_end) {
    // The first step warms caches up; rates are smoothed over the last ones.
    rate_ = rate_ == 0 ? result.tokens / step_seconds : 0.9 * rate_ + 0.1 * result.tokens / step_seconds;
    StepLine line{.step = state_->step,
                  .last = last_,
                  .loss = result.loss,
                  .grad_norm = result.grad_norm,
                  .lr = settings.lr,
                  .tokens_per_s = rate_};
    line.share_of_peak =
        step_flops(state_->model(), result.tokens, data_->context(state_->step)) * rate_ / result.tokens / 1e9 / peak_;
    if (last_) line.eta_s = (*last_ - state_->step) * result.tokens / rate_;
    if (config_.train.minutes)
      line.eta_s = std::min(line.eta_s < 0 ? 1e18 : line.eta_s, 60 * *config_.train.minutes - elapsed_);
    console_.step(line,
                  at_end || state_->step == 1 || (options.log_every > 0 && state_->step % options.log_every == 0));
  }

  void finish(const TrainReport& report) {
    saver_->drain();
    if (journal_) journal_->sync();
    if (board_) board_->flush();
    world_.barrier();
    const auto stored = store_->list();
    console_.line(fmt::format("{} at step {}: loss {:.4f}, {} tokens in {}; {} checkpoint{}, the last is {}",
                              report.stopped_by == "end" ? "done" : "stopped by " + report.stopped_by, report.step,
                              report.loss, count(tokens_), duration(elapsed_), stored.size(),
                              stored.size() == 1 ? "" : "s", stored.empty() ? "none" : stored.back().path.string()));
  }

  const config::RunConfig& config_;
  fs::path run_;
  parallel::World& world_;
  Console console_;
  TokenizerPtr tokenizer_;
  models::DecoderConfig decoder_config_;
  std::unique_ptr<data::Dataset> data_;
  std::optional<int64_t> last_;
  std::optional<checkpoints::Store> store_;
  std::optional<checkpoints::Journal> journal_;
  std::optional<TensorBoardWriter> board_;
  std::unique_ptr<State> state_;
  std::unique_ptr<Saver> saver_;  // after what it refers to: its thread ends first
  checkpoints::Schedule schedule_;
  const config::Stage* stage_ = nullptr;
  std::deque<double> losses_;
  std::map<int64_t, std::string> past_digests_;
  bool warned_ = false, restored_ = false;  // restored: the state came from a checkpoint
  double last_loss_ = 0;
  int64_t tokens_ = 0;
  double elapsed_ = 0, rate_ = 0, peak_ = 1;
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
