#include "trainer/generate.h"

#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/cli/sampler.h"

namespace cairn::cli {
namespace {

struct Options : SamplerOptions {
  std::string prompt;
  bool json = false;
};

}  // namespace

Action generate_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  add_sampler(command, *o);
  command.add_option("--prompt", o->prompt, "text to go on from")->required();
  command.add_flag("--json", o->json, "{\"text\", \"ids\", \"logprobs\", \"finish_reason\"}, with --draft \"draft\"");
  return [o] {
    const Sampler sampler = load_sampler(*o, locate(o->model).folder);
    const Generator generator(*sampler.model, *sampler.tokenizer);
    const auto ids = prompt_ids(*sampler.tokenizer, o->prompt);
    if (o->json) {
      const Generation g = generator.run(ids, sampler.sampling);
      nlohmann::ordered_json json{
          {"text", g.text}, {"ids", g.ids}, {"logprobs", g.logprobs}, {"finish_reason", g.finish_reason}};
      if (!sampler.sampling.draft.empty()) {
        json["draft"] = {{"proposed", g.drafted},
                         {"accepted", g.accepted},
                         {"acceptance_rate", g.drafted ? static_cast<double>(g.accepted) / g.drafted : 0.0}};
      }
      fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
      return 0;
    }
    fmt::print("{}", o->prompt);
    generator.run(ids, sampler.sampling, show);
    fmt::print("\n");
    return 0;
  };
}

}  // namespace cairn::cli
