#include "trainer/cli/cli.h"

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "models/families/config_reader.h"
#include "trainer/config/location.h"
#include "trainer/environment.h"

namespace cairn::cli {
namespace {

struct Entry {
  const char* name;
  const char* help;
  Verb verb;
  bool outlives_console = false;  // what it does counts, whether anybody reads what it says or not
};

constexpr Entry kVerbs[] = {
    {"train", "start a run from a YAML file", train_verb, true},
    {"resume", "go on from the last committed step of a run", resume_verb, true},
    {"fork", "start a new run from any step of another, with changes", fork_verb},
    {"replay", "recompute steps of a run, verify each, measure what was not measured", replay_verb},
    {"log", "the time line of a run", log_verb},
    {"verify", "check digests and formats of a run, a checkpoint or a model", verify_verb},
    {"eval", "how well a model predicts a text or given ids", eval_verb},
    {"generate", "sample from a model", generate_verb},
    {"chat", "talk with a model, through its own chat template", chat_verb},
    {"diff", "two models compared tensor by tensor, or two runs setting by setting", diff_verb},
    {"merge", "one model made of several: averages, SLERP, task vectors", merge_verb},
    {"upcycle", "a mixture of experts that begins with the weights of a dense model", upcycle_verb},
    {"analyze", "measures over the states of a run or a series", analyze_verb},
    {"report", "one HTML page of a run, or of several compared: curves, time line, maps, spectra, samples", report_verb},
    {"export", "a model or weights over steps in another format: hf, hdf5", export_verb},
    {"models", "the families there are", models_verb},
    {"tokenizer", "train a tokenizer; encode and decode with one", tokenizer_verb},
    {"data", "prepare shards; show the batch of a step; where a document was seen", data_verb},
    {"bench", "measure this machine", bench_verb},
};

// LibTorch's messages go on with a stack trace, which says nothing to a user.
int fail(int status, std::string message) {
  for (const char* trace : {"\nException raised from", "\nC++ CapturedTraceback", "\nframe #"})
    message.resize(std::min(message.size(), message.find(trace)));
  std::fprintf(stderr, "cairn: %s\n", message.c_str());
  return status;
}

// Whoever read the standard output is gone (`| head`).
bool reader_gone() {
  pollfd out{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  return ::poll(&out, 1, 0) == 1 && (out.revents & (POLLERR | POLLHUP));
}

const Entry& entry_of(const std::string& name) {
  return *std::find_if(std::begin(kVerbs), std::end(kVerbs), [&](const Entry& entry) { return name == entry.name; });
}

}  // namespace

int run(int argc, char** argv) {
  prepare_process();
  CLI::App app("Cairn trains language models in C++ and keeps every step of the run.", "cairn");
  app.require_subcommand(1);
  app.set_version_flag("--version", "cairn 0.1.0");
  std::map<std::string, Action> actions;
  for (const Entry& entry : kVerbs) {
    CLI::App* command = app.add_subcommand(entry.name, entry.help);
    actions[entry.name] = entry.verb(*command);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  const std::string name = app.get_subcommands().front()->get_name();
  const auto printed = [] { return std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout; };
  try {
    const int status = actions.at(name)();
    std::cout.flush();
    if (printed() || (reader_gone() && entry_of(name).outlives_console)) return status;
    return reader_gone() ? 1 : fail(1, "the standard output cannot be written: what was to be printed is lost");
  } catch (const UsageError& error) {
    return fail(2, error.what());
  } catch (const config::ConfigError& error) {
    return fail(2, error.what());
  } catch (const models::ConfigError& error) {
    return fail(1, fmt::format("{}: {}", error.key, error.what()));
  } catch (const std::invalid_argument& error) {
    return fail(2, error.what());
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory");
  } catch (const std::exception& error) {
    if (!printed() && reader_gone()) return 1;  // fmt::print throws where nobody reads
    return fail(1, error.what());
  }
}

}  // namespace cairn::cli
