#include "trainer/upcycle.h"

#include "checkpoints/file.h"
#include "checkpoints/manifest.h"
#include "models/families/family.h"
#include "trainer/address.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/model_io.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string model, out;
  UpcycleOptions upcycle;
  bool json = false;
  int threads = 0;
};

int run_upcycle(const Options& o) {
  set_threads(o.threads);
  Console console(o.json);
  if (fs::exists(o.out))
    throw std::runtime_error(fmt::format("{}: is there already; upcycling makes a new folder", o.out));
  const Located from = locate(o.model);
  const auto dense = load_model(from.folder.string());
  const models::DecoderConfig config =
      models::decoder_config(upcycled_config(dense->config(), o.upcycle), /*strict=*/true);
  models::Decoder mixture(config);
  upcycle(*dense, mixture, o.upcycle);

  fs::path target = fs::absolute(o.out).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  fs::create_directories(target.parent_path());
  checkpoints::FolderCommit commit(target);
  const DiskModel disk = disk_model(mixture);
  commit.write_model(disk.views);
  commit.write("config.json", config_text(mixture));
  write_companions(from.folder, commit, /*with_config=*/false);
  const auto manifest = commit.commit({{"kind", "upcycle"},
                                       {"from", from.address},
                                       {"copies", o.upcycle.copies},
                                       {"slices", o.upcycle.slices},
                                       {"topk", o.upcycle.topk},
                                       {"seed", o.upcycle.seed}});
  const int64_t parameters = mixture.parameters().numel();
  if (o.json) {
    fmt::print("{}\n", Json{{"out", target.string()},
                            {"model_type", config.model_type},
                            {"experts", o.upcycle.copies * o.upcycle.slices},
                            {"parameters", parameters},
                            {"bytes", manifest.bytes()}}
                           .dump());
  } else {
    console.line(fmt::format("{} of {}: {} experts in each block, {} parameters -> {}", config.model_type, from.address,
                             o.upcycle.copies * o.upcycle.slices, count(parameters), target.string()));
  }
  return 0;
}

}  // namespace

Action upcycle_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command.add_option("model", o->model, "the dense model: an address or a folder (llama, mistral, qwen3)")->required();
  command.add_option("--out", o->out, "the mixture's folder: model.from of a run that trains it")->required();
  command.add_option("--copies", o->upcycle.copies, "of each feed-forward (default 8)");
  command.add_option("--slices", o->upcycle.slices, "that a copy is cut into, each an expert of its own (default 1)");
  command.add_option("--topk", o->upcycle.topk, "experts a token goes to, a multiple of the slices (default 2)");
  command.add_option("--seed", o->upcycle.seed, "of the router");
  add_threads(command, o->threads);
  command.add_flag("--json", o->json, "{\"out\", \"model_type\", \"experts\", \"parameters\", \"bytes\"}");
  return [o] { return run_upcycle(*o); };
}

}  // namespace cairn::cli
