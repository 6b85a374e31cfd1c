#pragma once
// The program's verbs: a table name -> function; one file a verb.
namespace cairn::cli {
// Runs one command line. Returns the exit status: 0 done, 1 failed, 2 used wrongly.
int run(int argc, char** argv);
}  // namespace cairn::cli
