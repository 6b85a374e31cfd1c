#include "trainer/replay_jobs.h"

#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <signal.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <numeric>

extern char** environ;

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

// A child process whose standard output is read here.
class Process {
 public:
  explicit Process(std::vector<std::string> command) {
    std::array<int, 2> ends;
    if (::pipe(ends.data()) != 0) throw std::runtime_error(fmt::format("replay: no pipe: {}", std::strerror(errno)));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    std::vector<char*> arguments;
    for (std::string& argument : command) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    const int error = ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    fd_ = ends[0];
    if (error != 0) {
      pid_ = -1;
      throw std::runtime_error(fmt::format("replay: a process cannot be started: {}", std::strerror(error)));
    }
  }
  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), fd_(std::exchange(other.fd_, -1)), text_(std::move(other.text_)) {}
  ~Process() {
    if (pid_ > 0) {  // an error elsewhere
      ::kill(pid_, SIGTERM);
      ::waitpid(pid_, nullptr, 0);
    }
    if (fd_ >= 0) ::close(fd_);
  }

  int fd() const { return fd_; }
  bool done() const { return fd_ < 0; }

  // Whole lines that have come; at the end of the output the process is waited for.
  std::vector<std::string> lines() {
    std::array<char, 65536> bytes;
    const ssize_t count = ::read(fd_, bytes.data(), bytes.size());
    if (count > 0) {
      text_.append(bytes.data(), count);
    } else if (count == 0) {
      ::close(std::exchange(fd_, -1));
      ::waitpid(std::exchange(pid_, -1), nullptr, 0);
    }
    std::vector<std::string> lines;
    for (size_t end; (end = text_.find('\n')) != std::string::npos; text_.erase(0, end + 1))
      lines.push_back(text_.substr(0, end));
    return lines;
  }

 private:
  pid_t pid_ = -1;
  int fd_ = -1;
  std::string text_;
};

// A checkpoint that is damaged is met from both sides: what knows the tensor stays.
void add_faults(const Json& faults, Json& all) {
  for (const Json& fault : faults) {
    const auto same = std::find_if(all.begin(), all.end(), [&](const Json& f) {
      return f.at("step") == fault.at("step") && f.at("kind") == fault.at("kind");
    });
    if (same == all.end()) {
      all.push_back(fault);
    } else if (fault.contains("tensor") && !same->contains("tensor")) {
      *same = fault;
    }
  }
}

}  // namespace

std::vector<std::pair<int64_t, int64_t>> share_out(int64_t from, int64_t to, const std::vector<int64_t>& stored,
                                                   int jobs) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  int64_t begin = from;
  for (int job = 0; job < jobs && begin < to; ++job) {
    const int64_t wanted = begin + (to - begin + jobs - job - 1) / (jobs - job);
    // The first checkpoint at or behind the fair share.
    int64_t end = to;
    for (int64_t step : stored) {
      if (step >= wanted && step < end && job + 1 < jobs) end = step;
    }
    ranges.emplace_back(begin, end);
    begin = end;
  }
  if (ranges.empty()) ranges.emplace_back(from, to);
  ranges.back().second = to;
  return ranges;
}

Json replay_ranges(const std::vector<std::pair<int64_t, int64_t>>& ranges, const JobOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Process> processes;
  for (const auto& [from, to] : ranges) {
    std::vector<std::string> command = options.command;
    for (const std::string& argument :
         {std::string("--from"), std::to_string(from), std::string("--to"), std::to_string(to),
          std::string("--threads"), std::to_string(options.threads), std::string("--json"), std::string("--report-at")})
      command.push_back(argument);
    processes.emplace_back(command);
  }
  std::vector<Json> reports(ranges.size());
  std::vector<int64_t> done(ranges.size(), 0);
  const int64_t total = ranges.back().second - ranges.front().first;
  auto open = [&] { return std::any_of(processes.begin(), processes.end(), [](const auto& p) { return !p.done(); }); };
  while (open()) {
    std::vector<pollfd> wait;
    for (const Process& process : processes) wait.push_back({process.fd(), POLLIN, 0});  // a closed one: ignored
    if (::poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR)
      throw std::runtime_error(fmt::format("replay: poll: {}", std::strerror(errno)));
    for (size_t i = 0; i < processes.size(); ++i) {
      if (processes[i].done() || !(wait[i].revents & (POLLIN | POLLHUP | POLLERR))) continue;
      for (const std::string& line : processes[i].lines()) {
        const Json json = Json::parse(line);
        if (!json.contains("at")) {
          reports[i] = json;
          continue;
        }
        done[i] = std::max<int64_t>(0, json.at("at").get<int64_t>() - ranges[i].first);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        if (options.progress)
          options.progress(
              {json.at("at").get<int64_t>(), std::accumulate(done.begin(), done.end(), int64_t{0}), total, seconds});
      }
    }
  }
  Json all = reports.front();
  Json faults = Json::array();
  for (size_t i = 0; i < reports.size(); ++i) {
    const Json& report = reports[i];
    const std::string where = fmt::format("the replay of the steps {} to {}", ranges[i].first + 1, ranges[i].second);
    if (report.is_null()) throw std::runtime_error(where + " ended without an answer");
    if (report.contains("error"))
      throw std::runtime_error(fmt::format("{}: {}", where, report.at("error").get<std::string>()));
    add_faults(report.at("faults"), faults);
    if (i == 0) continue;
    for (const char* key : {"replayed", "compared", "checkpoints"})
      all[key] = all.at(key).get<int64_t>() + report.at(key).get<int64_t>();
  }
  std::stable_sort(faults.begin(), faults.end(),
                   [](const Json& a, const Json& b) { return a.at("step") < b.at("step"); });
  all["to"] = ranges.back().second;
  all["verified"] = faults.empty();
  all["first_divergence"] = faults.empty() ? Json() : faults.front().at("step");
  all["faults"] = faults;
  all["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  all["jobs"] = ranges.size();
  return all;
}

}  // namespace cairn
