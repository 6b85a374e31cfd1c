// A program of the user's as a child in a process group of its own, with pipes to its standard streams.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace cairn::rl {

struct Command {
  std::string shell;              // a line for /bin/sh -c, or
  std::vector<std::string> argv;  // the program, looked for in PATH, and its arguments
  std::string folder;             // "": the current one
  std::string text() const;       // how an error names it
};

// REQUIRES that SIGPIPE is ignored in this process (the trainer does so at its start).
class Process {
 public:
  // Throws std::runtime_error "PROGRAM: cannot be started: ...".
  explicit Process(const Command& command);
  // Closes the input, gives the program a second to end, then kills whatever is left of its group.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  int in() const { return in_; }    // its standard input: write, does not block; -1 once closed
  int out() const { return out_; }  // its standard output: read, does not block
  int err() const { return err_; }  // its standard error: likewise
  pid_t id() const { return id_; }
  void close_in();

  // Whether the program itself has ended (children of it may live on). Waits up to `seconds`.
  bool ended(double seconds = 0);
  // "ended with exit status 3", "was killed by signal 9 (Killed)", "is running".
  std::string state();
  // Kills the group at once, without a farewell.
  void kill();

 private:
  pid_t id_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  int code_ = 0, status_ = 0;  // si_code and si_status, once ended
  bool ended_ = false, reaped_ = false;
};

}  // namespace cairn::rl
