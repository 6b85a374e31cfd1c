#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "checkpoints/store.h"

namespace cairn::checkpoints {

RunLock::RunLock(const std::filesystem::path& run) {
  std::error_code error;
  std::filesystem::create_directories(run, error);
  if (error) throw std::runtime_error(fmt::format("cannot create the folder {}: {}", run.string(), error.message()));
  const auto path = run / ".lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0)
    throw std::runtime_error(
        fmt::format("cannot write the run {}: {}: {}", run.string(), path.string(), std::strerror(errno)));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    std::array<char, 300> holder{};
    const ssize_t n = ::pread(fd_, holder.data(), holder.size() - 1, 0);
    ::close(std::exchange(fd_, -1));
    if (reason != EWOULDBLOCK)
      throw std::runtime_error(fmt::format("cannot lock {}: {}", path.string(), std::strerror(reason)));
    std::string who(holder.data(), n > 0 ? n : 0);
    while (!who.empty() && who.back() == '\n') who.pop_back();
    throw std::runtime_error(fmt::format("the run {} is being written by {}: wait for it or stop it first",
                                         run.string(), who.empty() ? "another process" : who));
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::string me = fmt::format("process {} on {}\n", ::getpid(), host.data());
  // For the message of a second writer alone: the lock itself does not depend on it.
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, me.data(), me.size(), 0) < 0) return;
}

RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace cairn::checkpoints
