#include "trainer/train_log.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "trainer/flops.h"
#include "trainer/generate.h"

namespace cairn {

using Json = nlohmann::ordered_json;

void TrainLog::start(const std::filesystem::path& run, int ranks, bool resuming) {
  samples_ = run / "samples.jsonl";
  if (resuming) {
    console_.line(fmt::format("resuming {} at step {}{}", run.string(), stepper_.step(),
                              stepper_.last() ? fmt::format(" of {}", *stepper_.last()) : ""));
    return;
  }
  int64_t train_tokens = 0;
  const data::Dataset& data = stepper_.data();
  for (int32_t i = 0; i < data.source_count(); ++i) train_tokens += data.source(i).train_tokens;
  const std::string read = data.source_count() > 0 ? fmt::format(" · {} training tokens", count(train_tokens)) : "";
  console_.line(fmt::format("{} {}, {} parameters, vocabulary {}{} · {} threads × {} ranks · run {}",
                            stepper_.decoder_config().model_type, stepper_.config().objective,
                            count(stepper_.state().model().parameters().numel()), stepper_.decoder_config().vocab_size,
                            read, at::get_num_threads(), ranks, run.string()));
  const auto& options = stepper_.config().data;
  for (int32_t i = 0; i < data.source_count(); ++i) {
    const data::SourceInfo& source = data.source(i);
    if (source.overlong > 0)
      console_.line(fmt::format("{}: {} of {} examples are longer than {} tokens and are {}", source.name,
                                source.overlong, source.train_documents, options.context,
                                options.overlong == "drop" ? "left out" : "cut"));
    if (source.silent > 0)
      console_.line(fmt::format("{}: {} examples are left out: no token of theirs would be predicted within {} tokens",
                                source.name, source.silent, options.context));
  }
}

void TrainLog::curves(const Json& line) {
  if (!board_) return;
  const int64_t step = line.at("step").get<int64_t>();
  for (const char* key : {"loss", "mtp_loss", "grad_norm", "lr", "accuracy"}) {
    if (line.contains(key) && line.at(key).is_number())
      board_->scalar(fmt::format("train/{}", key), line.at(key).get<double>(), step);
  }
  const Json layers = line.value("layers", Json::object());
  for (const auto& [name, blocks] : layers.items())
    for (const auto& [block, value] : blocks.items())
      board_->scalar(fmt::format("layers/{}/{}", name, block), value.get<double>(), step);
  const Json metrics = line.value("metrics", Json::object()), task = line.value("task", Json::object());
  for (const auto& [name, value] : metrics.items()) board_->scalar(name, value.get<double>(), step);
  for (const auto& [name, value] : task.items())
    if (value.is_number()) board_->scalar("eval/task/" + name, value.get<double>(), step);
  if (!line.contains("eval")) return;
  for (const auto& [set, values] : line.at("eval").items()) {
    board_->scalar(fmt::format("eval/{}/nll", set), values.at("nll").get<double>(), step);
    board_->scalar(fmt::format("eval/{}/bits_per_byte", set), values.at("bits_per_byte").get<double>(), step);
  }
}

void TrainLog::sample(const config::SampleOptions& options) {
  const data::Tokenizer& tokenizer = *stepper_.tokenizer();
  std::vector<int32_t> prompt = tokenizer.encode(options.prompt, true);
  if (prompt.empty() && tokenizer.eos_id()) prompt = {*tokenizer.eos_id()};
  if (prompt.empty()) prompt = {0};
  const Generation g = Generator(stepper_.state().model(), tokenizer)
                           .run(prompt, {.max_tokens = options.tokens,
                                         .temperature = options.temperature,
                                         .seed = stepper_.config().seed.sample + stepper_.step()});
  console_.line(fmt::format("  sample: {}{}", options.prompt, g.text));
  const Json line{{"step", stepper_.step()}, {"prompt", options.prompt}, {"text", g.text}};
  std::ofstream file(samples_, std::ios::app | std::ios::binary);
  if (!(file << line.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n' << std::flush))
    throw std::runtime_error(fmt::format("{}: the sample of step {} cannot be written: {}", samples_.string(),
                                         stepper_.step(), std::strerror(errno)));
  if (board_) board_->text("sample", options.prompt + g.text, stepper_.step());
}

void TrainLog::step(const Advance& made, double step_seconds, double elapsed, int64_t log_every, bool at_end) {
  const double tokens = made.result.tokens;
  // The first step warms caches up; rates are smoothed over the last ones.
  rate_ = rate_ == 0 ? tokens / step_seconds : 0.9 * rate_ + 0.1 * tokens / step_seconds;
  const auto last = stepper_.last();
  StepLine line{.step = made.step,
                .last = last,
                .loss = made.result.loss,
                .grad_norm = made.result.grad_norm,
                .lr = made.settings.lr,
                .tokens_per_s = rate_};
  const double flops = step_flops(stepper_.state().model(), made.result.tokens, stepper_.data().context(made.step));
  const double gflops = flops * rate_ / tokens / 1e9;
  if (gflops > peak_ && measure_) peak_ = std::max({peak_, measure_(), gflops});
  line.share_of_peak = gflops / peak_;
  if (last) line.eta_s = (*last - made.step) * tokens / rate_;
  if (const auto minutes = stepper_.config().train.minutes)
    line.eta_s = std::min(line.eta_s < 0 ? 1e18 : line.eta_s, 60 * *minutes - elapsed);
  console_.step(line, at_end || made.step == 1 || (log_every > 0 && made.step % log_every == 0));
}

void TrainLog::flush() {
  if (board_) board_->flush();
}

}  // namespace cairn
