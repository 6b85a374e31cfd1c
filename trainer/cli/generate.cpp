#include "trainer/generate.h"

#include <iostream>

#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/cli/device_option.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

struct Options {
  std::string model, prompt, device = "auto";
  SamplingOptions sampling;
  int threads = 0;
  bool json = false;
};

void add_options(CLI::App& command, Options& o) {
  command.add_option("model", o.model, "a Hugging Face folder, a GGUF file, RUN, or RUN@STEP")->required();
  command.add_option("--max-tokens", o.sampling.max_tokens, "default 128");
  command.add_option("--temperature", o.sampling.temperature, "0: greedy (default 1)");
  command.add_option("--top-k", o.sampling.top_k, "0: off");
  command.add_option("--top-p", o.sampling.top_p, "1: off");
  command.add_option("--min-p", o.sampling.min_p, "0: off");
  command.add_option("--seed", o.sampling.seed, "the same seed gives the same text");
  command.add_option("--stop", o.sampling.stop, "text that ends the answer (several may be given)");
  command.add_option("--draft", o.sampling.draft,
                     "mtp: draft with the modules that predict further tokens (the text stays)");
  add_threads(command, o.threads);
  add_device(command, o.device);
}

struct Loaded {
  std::unique_ptr<models::Decoder> model;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  SamplingOptions sampling;  // as asked for, and what ends a text
};

Loaded load(const Options& o) {
  check(o.sampling);
  set_threads(o.threads);
  const at::Device device = device_of_option(o.device);
  const auto folder = locate(o.model).folder;
  Loaded loaded{load_model(folder.string(), at::kFloat, device), data::Tokenizer::from_file(folder.string()),
                o.sampling};
  loaded.sampling.end_ids = end_ids(folder.string());
  return loaded;
}

// A prompt of no tokens begins where a document begins.
std::vector<int32_t> prompt_ids(const data::Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text, true);
  if (ids.empty() && tokenizer.eos_id()) ids = {*tokenizer.eos_id()};
  return ids;
}

}  // namespace

Action generate_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  add_options(command, *o);
  command.add_option("--prompt", o->prompt, "text to go on from")->required();
  command.add_flag("--json", o->json, "{\"text\", \"ids\", \"logprobs\", \"finish_reason\"}, with --draft \"draft\"");
  return [o] {
    const Loaded loaded = load(*o);
    const Generator generator(*loaded.model, *loaded.tokenizer);
    const auto ids = prompt_ids(*loaded.tokenizer, o->prompt);
    if (o->json) {
      const Generation g = generator.run(ids, loaded.sampling);
      nlohmann::ordered_json json{
          {"text", g.text}, {"ids", g.ids}, {"logprobs", g.logprobs}, {"finish_reason", g.finish_reason}};
      if (!loaded.sampling.draft.empty()) {
        json["draft"] = {{"proposed", g.drafted},
                         {"accepted", g.accepted},
                         {"acceptance_rate", g.drafted ? static_cast<double>(g.accepted) / g.drafted : 0.0}};
      }
      fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
      return 0;
    }
    fmt::print("{}", o->prompt);
    generator.run(ids, loaded.sampling, [](std::string_view text) {
      fmt::print("{}", text);
      std::fflush(stdout);
    });
    fmt::print("\n");
    return 0;
  };
}

Action chat_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  o->sampling.temperature = 0.8;
  add_options(command, *o);
  return [o] {
    const Loaded loaded = load(*o);
    const Generator generator(*loaded.model, *loaded.tokenizer);
    fmt::print("The model goes on from everything above; an empty line or Ctrl-D ends.\n");
    std::string past, line;
    for (uint64_t turn = 0; fmt::print("> "), std::fflush(stdout), std::getline(std::cin, line) && !line.empty();
         ++turn) {
      past += line;
      // Older text leaves the context first, at a token's border.
      std::vector<int32_t> ids = prompt_ids(*loaded.tokenizer, past);
      const int64_t room =
          loaded.model->config().max_position_embeddings -
          std::min<int64_t>(o->sampling.max_tokens, loaded.model->config().max_position_embeddings / 2);
      if (static_cast<int64_t>(ids.size()) > room) {
        fmt::print("[the first {} tokens no longer fit the model's context]\n", ids.size() - room);
        ids.erase(ids.begin(), ids.end() - room);
      }
      SamplingOptions sampling = loaded.sampling;
      sampling.seed += turn;
      const Generation g = generator.run(ids, sampling, [](std::string_view text) {
        fmt::print("{}", text);
        std::fflush(stdout);
      });
      fmt::print("\n");
      past += g.text + "\n";
    }
    fmt::print("\n");
    return 0;
  };
}

}  // namespace cairn::cli
