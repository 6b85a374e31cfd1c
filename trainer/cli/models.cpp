#include "models/families/family.h"
#include "trainer/cli/cli.h"

namespace cairn::cli {

Action models_verb(CLI::App& command) {
  auto json = std::make_shared<bool>(false);
  command.add_flag("--json", *json, "[{\"model_type\", \"architecture\"}]");
  return [json] {
    auto out = nlohmann::ordered_json::array();
    for (const models::Family* f : models::families())
      out.push_back({{"model_type", f->model_type}, {"architecture", f->architecture}});
    if (*json) {
      fmt::print("{}\n", out.dump());
    } else {
      for (const auto& f : out)
        fmt::print("{:<14} {}\n", f.at("model_type").get<std::string>(), f.at("architecture").get<std::string>());
    }
    return 0;
  };
}

}  // namespace cairn::cli
