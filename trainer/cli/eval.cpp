#include "trainer/evaluate.h"

#include <fstream>

#include "checkpoints/file.h"
#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/cli/device_option.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

// One JSON array of ids a line -> the array of log-probabilities of ids 1, 2, ...
void evaluate_ids(const models::Decoder& model, const std::string& ids_file, const std::string& out_file) {
  std::ifstream in(ids_file);
  if (!in) throw std::runtime_error(fmt::format("{}: cannot be read", ids_file));
  std::string text, line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    std::vector<int32_t> ids;
    try {
      const nlohmann::json array = nlohmann::json::parse(line);
      bool whole = array.is_array();
      for (const auto& id : array) whole = whole && id.is_number_integer();
      if (!whole) throw std::invalid_argument("");
      // What an id of 64 bits wraps to must not pass for another id.
      for (const auto& id : array) ids.push_back(static_cast<int32_t>(std::clamp<double>(id, INT32_MIN, INT32_MAX)));
    } catch (const std::exception&) {
      throw std::runtime_error(fmt::format("{}:{}: found '{}{}', expected one JSON array of token ids a line", ids_file,
                                           number, line.substr(0, 40), line.size() > 40 ? "..." : ""));
    }
    std::vector<float> logprobs;
    try {
      logprobs = log_probabilities(model, ids);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(fmt::format("{}:{}: {}", ids_file, number, error.what()));
    }
    text += '[';
    for (size_t i = 0; i < logprobs.size(); ++i) text += fmt::format("{}{:.9g}", i ? ", " : "", logprobs[i]);
    text += "]\n";
  }
  checkpoints::replace_file(out_file, text);
}

// `of`: the state of a set.
void print(const Evaluation& e, const Located* of, bool json) {
  if (json) {
    nlohmann::ordered_json row = nlohmann::ordered_json::object();
    if (of) row = {{"address", of->address}, {"step", *of->step}};
    row.update({{"tokens", e.tokens}, {"nll", e.nll}, {"bits_per_byte", e.bits_per_byte}});
    fmt::print("{}\n", row.dump());
  } else {
    fmt::print("{}{} tokens: {:.4f} nats a token (perplexity {:.2f}), {:.4f} bits a byte\n",
               of ? fmt::format("step {:>8}  ", *of->step) : "", e.tokens, e.nll, std::exp(e.nll), e.bits_per_byte);
  }
  std::fflush(stdout);  // a set takes its time
}

}  // namespace

Action eval_verb(CLI::App& command) {
  struct Options {
    std::string model, text, ids, logprobs, device = "auto";
    int64_t context = 0, stride = 0;
    int threads = 0;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command
      .add_option("model", o->model,
                  "a Hugging Face folder, a GGUF file, RUN, RUN@STEP, or a set: RUN@A:B:STRIDE, RUN@stored, "
                  "FOLDER/step{N}, a YAML list of {step, path}")
      ->required();
  command.add_option("--text", o->text, "a text file: tokens, nll, bits_per_byte");
  command.add_option("--ids", o->ids, "a file with one JSON array of token ids a line");
  command.add_option("--logprobs", o->logprobs, "with --ids: where log p(id[i] | ids before i), i >= 1, go");
  command.add_option("--context", o->context, "tokens of a window (default: the model's, at most 2048)")
      ->check(CLI::PositiveNumber);
  command.add_option("--stride", o->stride, "distance of the windows' starts (default: the context)")
      ->check(CLI::PositiveNumber);
  add_threads(command, o->threads);
  add_device(command, o->device);
  command.add_flag(
      "--json", o->json,
      "{\"tokens\", \"nll\", \"bits_per_byte\"}; of a set one line a state, with \"step\" and \"address\"");
  return [o] {
    if (o->text.empty() == o->ids.empty())
      throw UsageError("eval: expected either --text FILE or --ids FILE --logprobs OUT");
    if (!o->ids.empty() && o->logprobs.empty()) throw UsageError("eval: --ids needs --logprobs OUT");
    set_threads(o->threads);
    const at::Device device = device_of_option(o->device);
    const bool several = names_several(o->model);
    if (several && !o->ids.empty()) throw UsageError("eval: --ids takes one model, not a set");
    const std::string text = o->ids.empty() ? checkpoints::read_file(o->text) : "";
    for (const Located& state : locate_set(o->model, false)) {
      const std::string folder = state.folder.string();
      const auto model = load_model(folder, at::kFloat, device);
      if (!o->ids.empty()) {
        evaluate_ids(*model, o->ids, o->logprobs);
        continue;
      }
      const auto tokenizer = data::Tokenizer::from_file(folder);
      const int64_t context =
          o->context ? o->context : std::min<int64_t>(2048, model->config().max_position_embeddings);
      const Evaluation e = evaluate_text(*model, *tokenizer, text, context, o->stride ? o->stride : context);
      print(e, several ? &state : nullptr, o->json);
    }
    return 0;
  };
}

}  // namespace cairn::cli
