#include "trainer/verify.h"

#include "trainer/cli/cli.h"

namespace cairn::cli {
namespace {

using Json = nlohmann::ordered_json;

Json report(const Verification& result) {
  Json out{{"verified", !result.fault}, {"checked", Json::array()}, {"fault", nullptr}};
  for (const auto& c : result.checked) out["checked"].push_back({{"path", c.path}, {"kind", c.kind}, {"what", c.what}});
  if (result.fault) out["fault"] = {{"path", result.fault->path}, {"problem", result.fault->problem}};
  return out;
}

}  // namespace

Action verify_verb(CLI::App& command) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command.add_option("path", o->path, "a run, a checkpoint, a trajectory, a model folder, a safetensors file")
      ->required();
  command.add_flag("--json", o->json,
                   "{\"verified\", \"checked\": [{\"path\", \"kind\", \"what\"}], \"fault\": null | {\"path\", "
                   "\"problem\"}}");
  return [o] {
    const Verification result = verify(o->path);
    if (o->json) {
      fmt::print("{}\n", report(result).dump());
    } else if (result.fault) {
      fmt::print("{}: {}\n", result.fault->path, result.fault->problem);
    } else {
      for (const auto& c : result.checked) fmt::print("{}: {}\n", c.path, c.what);
      fmt::print("{}: as it was written\n", o->path);
    }
    return result.fault ? 1 : 0;
  };
}

}  // namespace cairn::cli
