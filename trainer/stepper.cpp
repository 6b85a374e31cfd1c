#include "trainer/stepper.h"

#include "trainer/device.h"
#include "trainer/model_io.h"
#include "trainer/run_files.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

void check_machine(const config::RunConfig& config, parallel::World& world) {
  for (const auto& stage : config.stages) {
    if (stage.train.lanes % world.size) {
      config.fail("train.lanes", fmt::format("found {}, expected a multiple of the number of ranks ({})",
                                             stage.train.lanes, world.size));
    }
    if (stage.train.lanes != config.stages.front().train.lanes ||
        stage.train.precision != config.stages.front().train.precision) {
      config.fail("stages", "train.lanes and train.precision cannot change inside a run");
    }
  }
  if (config.parallel.data > 0 && config.parallel.data != world.size) {
    config.fail("parallel.data", fmt::format("found {}, but {} ranks were started", config.parallel.data, world.size));
  }
  if (config.objective == "grpo" && world.size > 1)
    config.fail(
        "objective",
        fmt::format("found 'grpo' on {} ranks, expected one: sampling is not shared among ranks yet", world.size));
  world.agree("the configuration", config::to_yaml(config));
}

// What train.device means for this rank; the same kind on all of them.
at::Device run_device(const config::RunConfig& config, parallel::World& world) {
  at::Device device = at::kCPU;
  try {
    device = choose_device(config.train.device, world.local_rank);
  } catch (const std::invalid_argument& error) {
    config.fail("train.device", error.what());
  }
  world.agree("the device", device.is_cuda() ? "cuda" : "cpu");
  return device;
}

}  // namespace

void Stepper::prepare(const data::ProgressCallback& progress, const std::filesystem::path& run) {
  tokenizer_ = make_tokenizer(config_, run);
  decoder_config_ = make_decoder_config(config_, *tokenizer_, run);
  check_samples(config_, *tokenizer_, decoder_config_);
  check_experts(config_, decoder_config_);
  check_modules(config_, decoder_config_);
  check_indexer(config_, decoder_config_);
  data_ = make_dataset(config_, tokenizer_, progress);
  objective_ = make_objective(config_, tokenizer_, decoder_config_, *data_);
  last_ = last_step(config_, *data_);
  check_schedules(config_, last_);
}

void Stepper::open() {
  check_machine(config_, world_);
  const at::Device device = run_device(config_, world_);
  const config::Stage& first = config_.stages.front();
  use_device_passes(first.train.kernels == "fast");
  const bool muon = std::any_of(config_.stages.begin(), config_.stages.end(),
                                [](const config::Stage& stage) { return stage.optim.name == "muon"; });
  state_ = std::make_unique<State>(decoder_config_, weight_type(first.train.precision), world_, first.train.lanes,
                                   config_.parallel.zero, muon, device);
  stage_ = nullptr;
}

void Stepper::initialise() {
  if (config_.model.from) {
    const auto folder = origin_folder(config_);
    const std::string type = read_model_config(folder.string()).value("model_type", "");
    const bool adds_indexer = type != decoder_config_.model_type;
    const bool adds_modules = config_.model.config.contains("num_nextn_predict_layers");
    if (adds_indexer || adds_modules) state_->model().parameters().initialise(config_.seed.init);
    load_weights(state_->model(), open_weights(folder), folder.string(), adds_indexer, adds_modules);
  } else {
    state_->model().parameters().initialise(config_.seed.init);
  }
  enter_stage(1);  // after the weights: a moving average starts at them
}

void Stepper::take(Stepper& other) {
  const at::NoGradGuard no_grad;
  State &from = *other.state_, &to = *state_;
  for (const auto& parameter : to.model().parameters().all())
    parameter.value().copy_(from.model().parameters().at(parameter.name).value());
  for (const auto& buffer : to.model().parameters().buffers())
    buffer.tensor.copy_(from.model().parameters().buffer(buffer.name).tensor);
  to.step = from.step;
  tokens = other.tokens;
  enter_stage(std::max<int64_t>(to.step, 1));
  std::map<std::string, at::Tensor> extras;
  for (const auto& extra : from.extras()) extras[extra.name] = extra.tensor;
  for (auto& extra : to.extras()) {
    if (const auto found = extras.find(extra.name); found != extras.end()) extra.tensor.copy_(found->second);
  }
  to.set_updates(from.updates());
}

Json Stepper::load(const std::filesystem::path& folder) {
  // The optimizer of the stage that the state was saved in.
  const auto stored = checkpoints::Store::step_of(folder.filename().string()).value_or(0);
  enter_stage(std::max<int64_t>(stored, 1));
  const Json saved = load_state(*state_, folder);
  tokens = saved.at("tokens").get<int64_t>();
  const std::string digest = state_->digest().hex();
  if (const auto recorded = saved.value("digest", digest); recorded != digest) {
    throw std::runtime_error(fmt::format("{}: the state that was loaded has digest {}, the one that was saved had {}",
                                         folder.string(), digest, recorded));
  }
  return saved;
}

void Stepper::remember(const Json& line) {
  if (!line.at("loss").is_number()) return;
  for (const Json& event : line.value("events", Json::array())) {
    if (event.value("event", "") == "nonfinite") return;
  }
  spikes_.remember(line.at("loss").get<double>(),
                   config_.stage_of(line.at("step").get<int64_t>()).train.on_spike.window);
}

const config::Stage& Stepper::enter_stage(int64_t step) {
  const config::Stage& stage = config_.stage_of(step);
  if (&stage != stage_) {
    state_->set_optimizer(optimizer_options(stage), stage.optim.ema);
    state_->model().set_activation_checkpointing(stage.train.activation_checkpointing);
    stage_ = &stage;
  }
  return stage;
}

Advance Stepper::advance(StepObserver* observer) {
  Advance made{.step = state_->step + 1};
  const config::Stage& stage = enter_stage(made.step);
  made.settings = step_settings(config_, stage, made.step, last_);
  const double threshold = spikes_.threshold(stage.train.on_spike);
  // Neither a step that is skipped nor one that ends the run moves the weights.
  made.settings.skip_loss_above = threshold;
  made.result = train_step(*state_, objective_->step(*state_, made.step, made.settings), made.settings, observer);

  const bool spike = made.result.finite && threshold > 0 && made.result.loss > threshold;
  if (!made.result.finite) {
    made.events.push_back({{"event", "nonfinite"}, {"action", stage.train.on_nonfinite}});
    if (stage.train.on_nonfinite == "stop") made.stop = "nonfinite";
  }
  if (spike) {
    made.events.push_back({{"event", "spike"}, {"threshold", threshold}, {"action", stage.train.on_spike.action}});
    if (stage.train.on_spike.action == "stop") made.stop = "spike";
  }
  if (!made.stop.empty()) {
    state_->step -= 1;
    return made;
  }
  if (made.result.finite) spikes_.remember(made.result.loss, stage.train.on_spike.window);
  tokens += made.result.tokens;
  return made;
}

}  // namespace cairn
