#include "checkpoints/journal.h"
#include "checkpoints/store.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"

namespace cairn::cli {

Action log_verb(CLI::App& command) {
  struct Options {
    std::string run;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command.add_option("run", o->run, "the run's folder")->required();
  command.add_flag("--json", o->json, "{\"steps\", \"checkpoints\": [{\"step\", \"kind\", \"bytes\", \"digest\"}]}");
  return [o] {
    const std::filesystem::path run(o->run);
    if (!std::filesystem::exists(run / "run.yaml"))
      throw UsageError(fmt::format("{}: no run here (no run.yaml)", o->run));
    const auto index = checkpoints::index_journal(run / "journal.jsonl");
    const int64_t steps = index.lines.empty() ? 0 : index.lines.back().step;
    std::vector<checkpoints::DamagedStep> damaged;
    const auto stored = checkpoints::Store(run, checkpoints::Store::Mode::read).list(&damaged);
    if (o->json) {
      nlohmann::ordered_json out{{"steps", steps}, {"checkpoints", nlohmann::ordered_json::array()}};
      for (const auto& s : stored) {
        out["checkpoints"].push_back({{"step", s.step},
                                      {"kind", s.manifest.about.value("kind", "")},
                                      {"bytes", s.manifest.bytes()},
                                      {"digest", s.manifest.about.value("digest", "")}});
      }
      for (const auto& d : damaged) out["damaged"].push_back({{"step", d.step}, {"fault", d.fault.message()}});
      fmt::print("{}\n", out.dump());
      return 0;
    }
    fmt::print("{}: {} steps, {} checkpoints{}\n", o->run, steps, stored.size(),
               index.torn ? "; the last line of the journal is torn and is dropped" : "");
    for (const auto& s : stored)
      fmt::print("  step {:>8}  {:>9}B  digest {}\n", s.step, count(s.manifest.bytes()),
                 s.manifest.about.value("digest", "?"));
    for (const auto& d : damaged) fmt::print("  step {:>8}  damaged: {}\n", d.step, d.fault.message());
    if (steps > 0) {
      const auto last = checkpoints::read_journal(run / "journal.jsonl", steps, steps);
      if (!last.empty() && last.back().at("loss").is_number())
        fmt::print("  last step: loss {:.4f}, {} tokens\n", last.back().at("loss").get<double>(),
                   count(last.back().at("tokens").get<double>()));
    }
    return 0;
  };
}

Action verify_verb(CLI::App& command) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command.add_option("path", o->path, "a run, or a checkpoint folder")->required();
  command.add_flag("--json", o->json, "{\"ok\", \"checked\", \"fault\"}");
  return [o] {
    namespace fs = std::filesystem;
    const fs::path path(o->path);
    if (!fs::exists(path)) throw UsageError(fmt::format("{}: no such file or folder", o->path));
    std::string fault;
    int64_t checked = 0;
    auto check = [&](const fs::path& folder) {
      ++checked;
      if (const auto found = checkpoints::verify_folder(folder); found && fault.empty())
        fault = fmt::format("{}: {}", folder.string(), found->message());
    };
    if (fs::exists(path / "checkpoints")) {
      try {
        checkpoints::index_journal(path / "journal.jsonl");
      } catch (const std::exception& error) {
        fault = error.what();
      }
      for (const auto& entry : fs::directory_iterator(path / "checkpoints")) {
        if (checkpoints::Store::step_of(entry.path().filename().string())) check(entry.path());
      }
    } else {
      check(path);
    }
    if (o->json) {
      fmt::print("{}\n", nlohmann::ordered_json{{"ok", fault.empty()},
                                                {"checked", checked},
                                                {"fault", fault.empty() ? nlohmann::ordered_json()
                                                                        : nlohmann::ordered_json(fault)}}
                             .dump());
    } else {
      fmt::print("{}\n", fault.empty()
                             ? fmt::format("{}: {} checkpoint folder(s) as they were written", o->path, checked)
                             : fault);
    }
    return fault.empty() ? 0 : 1;
  };
}

}  // namespace cairn::cli
