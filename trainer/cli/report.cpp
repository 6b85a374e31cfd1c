#include "trainer/report/report.h"

#include "trainer/cli/cli.h"
#include "trainer/console.h"
#include "trainer/environment.h"
#include "trainer/report/series.h"

namespace cairn::cli {

Action report_verb(CLI::App& command) {
  struct Options {
    std::vector<std::string> runs;
    std::string out;
    int threads = 0;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command
      .add_option(
          "run", o->runs,
          "folders of runs or of measured series (METRIC.jsonl), or models not of a run: FOLDER/step{N}, a YAML "
          "list of {step, path}, whose weights are measured first; several are compared")
      ->required();
  command.add_option("--out", o->out, "the page (default: RUN/report.html; report.html for several and for models)");
  add_threads(command, o->threads);
  command.add_flag("--json", o->json, "{\"out\", \"bytes\", \"plots\"}");
  return [o] {
    namespace fs = std::filesystem;
    set_threads(o->threads);
    Console console(o->json);
    const bool in_run = o->runs.size() == 1 && !report::names_series(o->runs[0]);
    const fs::path out = !o->out.empty() ? fs::path(o->out)
                         : in_run        ? fs::path(o->runs[0]) / "report.html"
                                         : "report.html";
    if (fs::is_directory(out)) throw UsageError(fmt::format("--out {}: found a folder, expected a file", out.string()));
    const fs::path beside = (out.parent_path() / out.stem()).string() + "-series";
    std::vector<report::Shown> runs;
    for (const std::string& run : o->runs) {
      if (!report::names_series(run)) {
        runs.push_back({run});
        continue;
      }
      runs.push_back(
          {report::measure_series(run, beside, [&](const std::string& text) { console.progress(text); }), run});
      console.line(fmt::format("{}: measured into {}", run, runs.back().folder.string()));
    }
    const report::Report made = report::write_report(runs, out);
    if (o->json) {
      fmt::print("{}\n",
                 nlohmann::ordered_json{{"out", made.out.string()}, {"bytes", made.bytes}, {"plots", made.plots}}.dump(
                     -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    } else {
      fmt::print("{}: {} plots, {}B, opens in any browser without a network\n", made.out.string(), made.plots,
                 count(made.bytes));
    }
    return 0;
  };
}

}  // namespace cairn::cli
