#include "trainer/train.h"

#include <cstdio>
#include <ctime>
#include <filesystem>

#include "trainer/address.h"
#include "trainer/cli/as_rank.h"
#include "trainer/cli/cli.h"
#include "trainer/config/describe.h"
#include "trainer/console.h"

namespace cairn::cli {
namespace {

namespace fs = std::filesystem;

// runs/NAME-20261122-154500, so that a user who names no folder still gets one of his own.
std::string default_run(const std::string& config_file) {
  std::time_t now = std::time(nullptr);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", std::localtime(&now));
  return fmt::format("runs/{}-{}", fs::path(config_file).stem().string(), stamp);
}

void print_report(const TrainReport& report, const std::string& run) {
  const nlohmann::ordered_json json{
      {"run", run}, {"step", report.step}, {"loss", report.loss}, {"stopped_by", report.stopped_by}};
  std::printf("%s\n", json.dump().c_str());
}

// Every key of a run file.
int print_keys(bool json) {
  if (!json) {
    fmt::print("{}", config::describe());
    return 0;
  }
  auto keys = nlohmann::ordered_json::array();
  for (const auto& key : config::key_descriptions())
    keys.push_back({{"key", key.key}, {"default", key.standard}, {"allowed", key.allowed}, {"doc", key.doc}});
  fmt::print("{}\n", keys.dump());
  return 0;
}

// RUN and RUN@last move on with that run: run.yaml names the step that they mean now, by its folder; a folder of a
// cache may go, so a step that is not stored keeps its address.
void name_origin(config::RunConfig& config) {
  if (!config.model.from) return;
  const Located origin = locate(*config.model.from);
  const bool cached = origin.folder.parent_path().filename() == "cache" && origin.step;
  if (cached) {
    const std::string run = fs::absolute(origin.run).lexically_normal().string();
    config.model.from = fmt::format("{}@{}{}", run, *origin.step, origin.ema ? ":ema" : "");
  } else {
    config.model.from = fs::absolute(origin.folder).lexically_normal().string();
  }
}

// A run that stopped because of what it computed has failed; one that was asked to stop has not.
int status_of(const TrainReport& report) {
  return report.stopped_by == "nonfinite" || report.stopped_by == "spike" ? 1 : 0;
}

}  // namespace

Action train_verb(CLI::App& command) {
  struct Options {
    std::string config, run;
    std::vector<std::string> overrides;
    bool dry_run = false, json = false, keys = false;
  };
  auto o = std::make_shared<Options>();
  command.add_option("config", o->config, "run file (YAML)");
  command.add_option("overrides", o->overrides, "settings laid over it: optim.lr=1e-3 train.steps=100 ...");
  command.add_option("--run", o->run, "the run's folder (default: runs/NAME-TIME)");
  command.add_flag("--dry-run", o->dry_run, "print parameters, memory, disk and time, and stop");
  command.add_flag("--keys", o->keys, "print every key of a run file with default, meaning and range, and stop");
  command.add_flag("--json", o->json, "one line of JSON at the end instead of progress");
  command.footer("Keys of a run file: cairn train --keys. A run's own run.yaml has all of them with their values.");
  return [o] {
    if (o->keys) return print_keys(o->json);
    if (o->config.empty()) throw UsageError("train: no run file is named: cairn train FILE.yaml [key=value ...]");
    config::RunConfig config = config::load(o->config, o->overrides);
    if (o->dry_run) {
      name_origin(config);
      set_threads(config.train.threads);
      const auto report = dry_run(config);
      if (o->json) {
        std::printf("%s\n", report.dump().c_str());
      } else {
        fmt::print("parameters       {}\n", count(report.at("parameters").get<double>()));
        fmt::print("memory           about {:.2f} GiB\n", report.at("memory_bytes").get<double>() / (1 << 30));
        const bool reads = report.at("train_tokens").get<int64_t>() > 0;  // else what it learns from is sampled
        if (reads) {
          fmt::print("training tokens  {}\n", count(report.at("train_tokens").get<double>()));
          fmt::print("tokens a step    {}\n", report.at("tokens_per_step").get<int64_t>());
        }
        if (report.contains("steps")) {
          fmt::print("steps            {}{}\n", report.at("steps").get<int64_t>(),
                     reads ? fmt::format(" ({:.2f} epochs)", report.at("epochs").get<double>()) : "");
          fmt::print("checkpoints      {}, {:.2f} GiB on disk\n", report.at("checkpoints").get<int64_t>(),
                     report.at("disk_bytes").get<double>() / (1 << 30));
          if (const auto stored = report.at("trajectory_steps").get<int64_t>(); stored > 0) {
            fmt::print("trajectory       {} steps, at most {:.2f} GiB on disk\n", stored,
                       report.at("trajectory_bytes").get<double>() / (1 << 30));
          }
          if (report.contains("seconds"))
            fmt::print("time             about {} (products at 70% of this machine's peak)\n",
                       duration(report.at("seconds").get<double>()));
        }
      }
      return 0;
    }
    return as_rank(config.train.threads, [&](parallel::World& world) {
      // Every rank needs the same folder; the first one names it.
      const std::string run = world.broadcast(o->run.empty() ? default_run(o->config) : o->run);
      if (world.is_first()) name_origin(config);
      if (config.model.from) config.model.from = world.broadcast(*config.model.from);
      const TrainReport report = start_run(config, run, world, o->json);
      if (o->json && world.is_first()) print_report(report, run);
      return status_of(report);
    });
  };
}

Action resume_verb(CLI::App& command) {
  struct Options {
    std::string run;
    bool json = false;
    int threads = 0;
  };
  auto o = std::make_shared<Options>();
  command.add_option("run", o->run, "the run's folder")->required();
  add_threads(command, o->threads, "threads a rank (default: what run.yaml says); changes no bit on the CPU");
  command.add_flag("--json", o->json, "one line of JSON at the end instead of progress");
  return [o] {
    if (!fs::exists(fs::path(o->run) / "run.yaml"))
      throw UsageError(fmt::format("{}: no run here (no run.yaml)", o->run));
    const int threads = o->threads > 0 ? o->threads : config::load(fs::path(o->run) / "run.yaml").train.threads;
    return as_rank(threads, [&](parallel::World& world) {
      const TrainReport report = resume_run(o->run, world, o->json);
      if (o->json && world.is_first()) print_report(report, o->run);
      return status_of(report);
    });
  };
}

}  // namespace cairn::cli
