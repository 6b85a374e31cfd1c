#include "trainer/fork.h"

#include "trainer/address_parts.h"
#include "trainer/cli/as_rank.h"
#include "trainer/cli/cli.h"
#include "trainer/train.h"

namespace cairn::cli {
namespace {

struct Options {
  std::string address, run;
  std::vector<std::string> changes;
  bool no_train = false, json = false;
  int threads = 0;
};

std::string text_of(const nlohmann::ordered_json& value) {
  return value.is_null() ? "nothing" : value.is_string() ? value.get<std::string>() : value.dump();
}

// Makes the child; returns what --json says of it.
nlohmann::ordered_json make_child(const Options& o) {
  const AddressParts parts = split_address(o.address);
  if (parts.ema)
    throw UsageError(fmt::format("{}: a fork goes on with a whole state: give the step without :ema", o.address));
  const int64_t step = selected_step(parts, o.address, {});
  const ForkReport report =
      fork_run({.run = parts.run, .step = step, .child = o.run, .changes = o.changes, .talk = talk_of({})});
  if (!o.json) {
    fmt::print("{} is forked from {}@{} (digest {})\n", o.run, parts.run.string(), step, report.parent_digest);
    for (const auto& change : report.changed)
      fmt::print("  {}: {}, was {}\n", change.at("key").get<std::string>(), text_of(change.at("now")),
                 text_of(change.at("was")));
    std::fflush(stdout);
  }
  nlohmann::ordered_json json{
      {"run", o.run},
      {"parent", {{"run", parts.run.string()}, {"step", step}, {"digest", report.parent_digest}}},
      {"digest", report.digest},
      {"changed", report.changed}};
  return json;
}

}  // namespace

Action fork_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command.add_option("address", o->address, "RUN@STEP: any step, stored or not; RUN@last, RUN@best")->required();
  command.add_option("changes", o->changes, "settings of the new run: optim.lr=1e-4 train.steps=2000 ...");
  command.add_option("--run", o->run, "the new run's folder")->required();
  add_threads(command, o->threads, "threads a rank (default: what run.yaml says); changes no bit on the CPU");
  command.add_flag("--no-train", o->no_train, "make the run, and leave it to `cairn resume`");
  command.add_flag("--json", o->json, "one line of JSON at the end instead of progress");
  command.footer(
      "Other data, batch or context hold from STEP on: each source goes on where it stood. A changed optim.schedule "
      "begins at STEP. All else is laid over the parent's settings.");
  return [o] {
    if (std::filesystem::exists(o->address))
      throw UsageError(fmt::format("{}: a fork begins at a step of a run: expected RUN@STEP", o->address));
    return as_rank(o->threads, [&](parallel::World& world) {
      nlohmann::ordered_json json;
      if (world.is_first()) json = make_child(*o);
      world.barrier();
      if (!o->no_train) {
        if (o->threads == 0) set_threads(config::load(std::filesystem::path(o->run) / "run.yaml").train.threads);
        const TrainReport report = resume_run(o->run, world, o->json);
        json["step"] = report.step;
        json["loss"] = report.loss;
        json["stopped_by"] = report.stopped_by;
        if (o->json && world.is_first()) fmt::print("{}\n", json.dump());
        return report.stopped_by == "nonfinite" || report.stopped_by == "spike" ? 1 : 0;
      }
      if (o->json && world.is_first()) fmt::print("{}\n", json.dump());
      return 0;
    });
  };
}

}  // namespace cairn::cli
