#include "trainer/rl/rewards/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

extern char** environ;

namespace cairn::rl {
namespace {

constexpr double kFarewell = 1.0;  // seconds

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
      throw std::runtime_error(fmt::format("no pipe to a program: {}", std::strerror(errno)));
    read = ends[0];
    write = ends[1];
  }
  ~Pipe() {
    if (read >= 0) ::close(read);
    if (write >= 0) ::close(write);
  }
  static int take(int& end) {
    const int fd = end;
    end = -1;
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
  }
};

struct Actions {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  Actions() {
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
  }
  ~Actions() {
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
  }
};

}  // namespace

std::string Command::text() const { return argv.empty() ? shell : fmt::format("{}", fmt::join(argv, " ")); }

Process::Process(const Command& command) {
  Pipe in, out, err;
  Actions actions;
  posix_spawn_file_actions_adddup2(&actions.files, in.read, 0);
  posix_spawn_file_actions_adddup2(&actions.files, out.write, 1);
  posix_spawn_file_actions_adddup2(&actions.files, err.write, 2);
  if (!command.folder.empty()) posix_spawn_file_actions_addchdir_np(&actions.files, command.folder.c_str());
#if __GLIBC_PREREQ(2, 34)
  posix_spawn_file_actions_addclosefrom_np(&actions.files, 3);  // files that libraries left open to children
#endif
  // A group of its own, so that its children can be ended with it; signals as a new program expects them: what this
  // process ignores or blocks would be inherited.
  sigset_t standard, none;
  sigemptyset(&none);
  sigemptyset(&standard);
  for (const int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD}) sigaddset(&standard, signal);
  posix_spawnattr_setpgroup(&actions.attributes, 0);
  posix_spawnattr_setsigdefault(&actions.attributes, &standard);
  posix_spawnattr_setsigmask(&actions.attributes, &none);
  posix_spawnattr_setflags(&actions.attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);

  std::vector<std::string> words = command.argv;
  if (words.empty()) words = {"/bin/sh", "-c", command.shell};
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error = ::posix_spawnp(&id_, argv[0], &actions.files, &actions.attributes, argv.data(), environ);
  if (error != 0)
    throw std::runtime_error(fmt::format("{}: cannot be started{}: {}", command.text(),
                                         command.folder.empty() ? "" : " in " + command.folder, std::strerror(error)));
  in_ = Pipe::take(in.write);
  out_ = Pipe::take(out.read);
  err_ = Pipe::take(err.read);
}

Process::~Process() {
  close_in();
  // Its output is read no longer: a program that still writes is told so instead of waiting for a reader.
  ::close(out_);
  ::close(err_);
  ended(kFarewell);
  kill();
}

void Process::close_in() {
  if (in_ >= 0) ::close(in_);
  in_ = -1;
}

bool Process::ended(double seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!ended_) {
    siginfo_t info{};
    // NOTE: not reaped here: as long as it is not, its group's number cannot be given to others.
    if (::waitid(P_PID, static_cast<id_t>(id_), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
      ended_ = true;
    } else if (info.si_pid == id_) {
      ended_ = true;
      code_ = info.si_code;
      status_ = info.si_status;
    } else if (std::chrono::steady_clock::now() >= until) {
      break;
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  return ended_;
}

std::string Process::state() {
  if (!ended()) return "is running";
  if (code_ == CLD_EXITED) return fmt::format("ended with exit status {}", status_);
  return fmt::format("was killed by signal {} ({})", status_, ::strsignal(status_));
}

void Process::kill() {
  if (reaped_) return;
  ::kill(-id_, SIGKILL);
  ::waitpid(id_, nullptr, 0);
  reaped_ = ended_ = true;
}

}  // namespace cairn::rl
