// The program's verbs: a table name -> function; one file a verb.
#pragma once

#include <CLI/CLI.hpp>
#include <stdexcept>
#include <string>

namespace cairn::cli {

// Used wrongly: exit status 2.
struct UsageError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Adds a verb's options to its sub-command and returns what runs it; the result is the exit status.
using Action = std::function<int()>;
using Verb = Action (*)(CLI::App& command);

// --threads N, where the default is all there are.
inline CLI::Option* add_threads(CLI::App& command, int& threads, const std::string& help = "default: all") {
  return command.add_option("--threads", threads, help)->check(CLI::Range(1, 4096));
}

Action train_verb(CLI::App& command);
Action resume_verb(CLI::App& command);
Action log_verb(CLI::App& command);
Action verify_verb(CLI::App& command);
Action eval_verb(CLI::App& command);
Action generate_verb(CLI::App& command);
Action chat_verb(CLI::App& command);
Action models_verb(CLI::App& command);
Action tokenizer_verb(CLI::App& command);
Action data_verb(CLI::App& command);
Action bench_verb(CLI::App& command);
Action replay_verb(CLI::App& command);
Action fork_verb(CLI::App& command);
Action diff_verb(CLI::App& command);
Action merge_verb(CLI::App& command);
Action upcycle_verb(CLI::App& command);
Action analyze_verb(CLI::App& command);
Action export_verb(CLI::App& command);
Action report_verb(CLI::App& command);

// Runs one command line. Returns the exit status: 0 done, 1 failed, 2 used wrongly.
int run(int argc, char** argv);

}  // namespace cairn::cli
