#include "trainer/replay.h"

#include "checkpoints/file.h"
#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/probes/probe.h"
#include "trainer/replay_jobs.h"

namespace cairn::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string run, text;
  int64_t from = 0, to = -1, every = 1;
  std::vector<std::string> probes;
  int jobs = 1, threads = 0;
  bool json = false, report_at = false;
};

std::string probe_names() {
  std::string names;
  for (const ProbeKind* kind : probe_kinds()) names += fmt::format("\n  {:<20} {}", kind->name, kind->help);
  return "Probes:" + names;
}

ProbeOptions probe_options(const Options& o, const Stepper& stepper) {
  return {.folder = std::filesystem::path(o.run) / "probes",
          .every = o.every,
          .seed = stepper.config().seed.sample,
          .text = o.text.empty() ? "" : checkpoints::read_file(o.text),
          .tokenizer = stepper.tokenizer()};
}

Json replay_here(const Options& o, const RunRecord& record, Console& console) {
  std::unique_ptr<Probes> probes;
  ReplayOptions options{.from = o.from, .to = o.to < 0 ? std::nullopt : std::optional(o.to)};
  if (!o.probes.empty()) {
    options.observer = [&](Stepper& stepper) {
      probes = make_probes(o.probes, probe_options(o, stepper));
      return probes.get();
    };
  }
  options.say = [&](const std::string& text) { console.line("replay: " + text); };
  auto told = std::chrono::steady_clock::now();
  options.progress = [&](const ReplayProgress& p) {
    const auto now = std::chrono::steady_clock::now();
    if (o.report_at && (p.done == p.total || now - told > std::chrono::milliseconds(200))) {
      fmt::print("{}\n", Json{{"at", p.step}}.dump());
      std::fflush(stdout);
      told = now;
    }
    console.progress(fmt::format("step {}  {} of {}  {:.1f} steps/s  ETA {}", p.step, p.done, p.total,
                                 p.done / p.seconds, duration(p.seconds / p.done * (p.total - p.done))));
  };
  Json json = to_json(replay(record, options));
  if (probes) {
    probes->finish();
    json["probes"] = Json::array();
    for (const auto& written : probes->written())
      json["probes"].push_back({{"metric", written.metric}, {"values", written.values}});
  }
  return json;
}

Json replay_shared(const Options& o, const RunRecord& record, Console& console) {
  const int64_t to = check_range(record, {.from = o.from, .to = o.to < 0 ? std::nullopt : std::optional(o.to)});
  std::vector<int64_t> stored;
  for (const auto& [step, folder] : record.stored()) stored.push_back(step);
  const auto ranges = share_out(o.from, to, stored, o.jobs);
  if (ranges.size() == 1) return replay_here(o, record, console);
  const int threads = std::max<int>(1, at::get_num_threads() / static_cast<int>(ranges.size()));
  console.line(fmt::format("replay: {} steps in {} processes of {} thread{}", to - o.from, ranges.size(), threads,
                           threads == 1 ? "" : "s"));
  JobOptions options{.command = {"cairn", "replay", o.run}, .threads = threads};
  for (const std::string& probe : o.probes) options.command.insert(options.command.end(), {"--probe", probe});
  if (!o.text.empty()) options.command.insert(options.command.end(), {"--text", o.text});
  options.command.insert(options.command.end(), {"--every", std::to_string(o.every)});
  options.progress = [&](const ReplayProgress& p) {
    if (p.done == 0) return;
    console.progress(fmt::format("{} of {}  {:.1f} steps/s  ETA {}", p.done, p.total, p.done / p.seconds,
                                 duration(p.seconds / p.done * (p.total - p.done))));
  };
  return replay_ranges(ranges, options);
}

void print(const Json& report, Console& console) {
  for (const Json& fault : report.at("faults")) {
    console.line(fmt::format("{}", fault.at("message").get<std::string>()));
    if (fault.contains("tensor")) {
      const Json& t = fault.at("tensor");
      console.line(
          fmt::format("  first tensor: {}, element {}: stored {}, replayed {} ({} of {} elements; {} tensor(s) differ)",
                      t.at("name").get<std::string>(), t.at("index").get<int64_t>(), t.at("stored").get<std::string>(),
                      t.at("replayed").get<std::string>(), t.at("elements").get<int64_t>(),
                      t.at("numel").get<int64_t>(), t.at("tensors").get<int64_t>()));
    } else if (fault.at("kind") == "step") {
      console.line(
          fmt::format("  no stored step behind it was reached: replay on to one, and its tensors are compared"));
    }
    for (const Json& cause : fault.value("causes", Json::array()))
      console.line(fmt::format("  likely: {}", cause.get<std::string>()));
  }
  const int64_t from = report.at("from").get<int64_t>(), to = report.at("to").get<int64_t>(),
                made = report.at("replayed").get<int64_t>();
  const std::string what = from == to ? fmt::format("no step to make at {}", from)
                                      : fmt::format("{}steps {} to {} replayed in {}",
                                                    made == to - from ? "" : fmt::format("{} of the ", made), from + 1,
                                                    to, duration(report.at("seconds").get<double>()));
  if (report.at("verified").get<bool>()) {
    console.line(fmt::format("{}: all {} digests and {} stored states as recorded", what,
                             report.at("compared").get<int64_t>(), report.at("checkpoints").get<int64_t>()));
  } else {
    console.line(fmt::format("{}: not verified, the first difference is at step {}", what,
                             report.at("first_divergence").get<int64_t>()));
  }
  for (const Json& probe : report.value("probes", Json::array()))
    console.line(
        fmt::format("  {}: {} values", probe.at("metric").get<std::string>(), probe.at("values").get<int64_t>()));
}

}  // namespace

Action replay_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  command.add_option("run", o->run, "the run's folder")->required();
  command.add_option("--from", o->from, "the steps from + 1 ... to are recomputed (default 0)")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--to", o->to, "default: the last step of the journal")->check(CLI::NonNegativeNumber);
  command.add_option("--jobs", o->jobs, "so many ranges between checkpoints at a time, threads divided (default 1)")
      ->check(CLI::Range(1, 1024));
  command.add_option("--probe", o->probes, "measure this at each step (several may be given; all): see below");
  command.add_option("--every", o->every, "probes: steps that are a multiple of it (default 1)")
      ->check(CLI::PositiveNumber);
  command.add_option("--text", o->text, "a file: the fixed text of the probe token_loss")->check(CLI::ExistingFile);
  add_threads(command, o->threads, "default: what run.yaml says; changes no bit on the CPU");
  command.add_flag("--json", o->json, "{\"replayed\", \"verified\", \"first_divergence\", ...}");
  command.add_flag("--report-at", o->report_at, "print the step that was reached now and then")->group("");
  command.footer(probe_names() + "\nA replay writes nothing but RUN/probes.");
  return [o] {
    if (!std::filesystem::exists(std::filesystem::path(o->run) / "run.yaml"))
      throw UsageError(fmt::format("{}: no run here (no run.yaml)", o->run));
    try {
      const RunRecord record(o->run);
      set_threads(o->threads > 0 ? o->threads : record.settings_at(1).train.threads);
      Console console(o->json);
      if (o->text.empty() && std::find(o->probes.begin(), o->probes.end(), "all") != o->probes.end())
        console.line("replay: token_loss is left out of `all`: it needs a fixed text (--text FILE)");
      const Json report = o->jobs > 1 ? replay_shared(*o, record, console) : replay_here(*o, record, console);
      if (o->json) {
        fmt::print("{}\n", report.dump());
      } else {
        print(report, console);
      }
      return report.at("verified").get<bool>() ? 0 : 1;
    } catch (const std::invalid_argument&) {
      throw;
    } catch (const std::runtime_error& error) {
      // What asks for JSON learns from it, too, that nothing was verified.
      if (o->json)
        fmt::print(
            "{}\n",
            Json{{"replayed", 0}, {"verified", false}, {"first_divergence", nullptr}, {"error", error.what()}}.dump());
      throw;
    }
  };
}

}  // namespace cairn::cli
