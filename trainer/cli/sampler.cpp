#include "trainer/cli/sampler.h"

#include "trainer/cli/device_option.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {

void add_sampler(CLI::App& command, SamplerOptions& o) {
  command.add_option("model", o.model, "a Hugging Face folder, a GGUF file, RUN, or RUN@STEP")->required();
  command.add_option("--max-tokens", o.sampling.max_tokens, "default 128");
  command.add_option("--temperature", o.sampling.temperature,
                     fmt::format("0: greedy (default {})", o.sampling.temperature));
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

Sampler load_sampler(const SamplerOptions& o, const std::filesystem::path& folder) {
  check(o.sampling);
  set_threads(o.threads);
  const at::Device device = device_of_option(o.device);
  Sampler sampler{load_model(folder.string(), at::kFloat, device), data::Tokenizer::from_file(folder.string()),
                  o.sampling};
  sampler.sampling.end_ids = end_ids(folder.string());
  return sampler;
}

std::vector<int32_t> prompt_ids(const data::Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text, true);
  if (ids.empty() && tokenizer.eos_id()) ids = {*tokenizer.eos_id()};
  return ids;
}

void show(std::string_view text) {
  fmt::print("{}", text);
  std::fflush(stdout);
}

}  // namespace cairn::cli
