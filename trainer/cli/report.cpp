#include "trainer/report/report.h"

#include "trainer/cli/cli.h"
#include "trainer/console.h"

namespace cairn::cli {

Action report_verb(CLI::App& command) {
  struct Options {
    std::vector<std::string> runs;
    std::string out;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  command
      .add_option("run", o->runs,
                  "folders of runs, or of measured series of foreign models (METRIC.jsonl); several are compared")
      ->required();
  command.add_option("--out", o->out, "the page (default: RUN/report.html, report.html for several)");
  command.add_flag("--json", o->json, "{\"out\", \"bytes\", \"plots\"}");
  return [o] {
    namespace fs = std::filesystem;
    const std::vector<fs::path> runs(o->runs.begin(), o->runs.end());
    const fs::path out = !o->out.empty()    ? fs::path(o->out)
                         : runs.size() == 1 ? runs[0] / "report.html"
                                            : "report.html";
    if (fs::is_directory(out)) throw UsageError(fmt::format("--out {}: found a folder, expected a file", out.string()));
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
