#include "trainer/rl/rewards/channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <unordered_map>

namespace cairn::rl {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kLongestLine = 64 << 20;
constexpr size_t kTail = 2000;
constexpr int kSlice = 100;  // milliseconds between looks at whether the program lives, where no pipe tells

// The first characters, fit for a message.
std::string shown(std::string_view text, size_t most = 200) {
  std::string out;
  for (const char c : text.substr(0, most)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return text.size() > most ? out + "..." : out;
}

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

struct Channel::Batch {
  std::string out;  // all questions, a line each
  size_t sent = 0;
  std::unordered_map<int64_t, size_t> index;  // id -> question
  std::vector<std::optional<Json>> answers;
  std::span<const std::string> names;
  const Check* check;
  size_t left = 0;
  int64_t first_id = 0;
  bool out_closed = false;
};

Channel::Channel(ChannelOptions options) : options_(std::move(options)) {}
Channel::~Channel() = default;

void Channel::start() {
  pending_.clear();
  err_tail_.clear();
  process_ = std::make_unique<Process>(options_.command);
}

void Channel::stop() {
  if (process_) process_->kill();
  process_.reset();
}

// What went wrong, with the questions that wait and the last words of the program.
void Channel::fail(const Batch& batch, const std::string& what) {
  read_err();
  std::string message =
      fmt::format("{} `{}` (process {}): {}", options_.what, options_.command.text(), process_->id(), what);
  if (batch.left > 0) {
    std::vector<std::string> waiting;
    for (size_t i = 0; i < batch.answers.size() && waiting.size() < 3; ++i)
      if (!batch.answers[i])
        waiting.push_back(fmt::format("{} ({})", batch.first_id + static_cast<int64_t>(i), batch.names[i]));
    message += fmt::format("; {} of {} questions without an answer: id {}{}", batch.left, batch.answers.size(),
                           fmt::join(waiting, ", id "), batch.left > waiting.size() ? ", ..." : "");
  }
  std::string_view tail = err_tail_;
  while (!tail.empty() && (tail.back() == '\n' || tail.back() == '\r')) tail.remove_suffix(1);
  if (!tail.empty()) message += fmt::format("; its standard error ends with:\n{}", tail);
  throw Failure(message);
}

void Channel::take_line(Batch& batch, std::string line) {
  if (!line.empty() && line.back() == '\r') line.pop_back();
  if (line.find_first_not_of(" \t") == std::string::npos) return;
  Json answer = Json::parse(line, nullptr, false);
  if (answer.is_discarded() || !answer.is_object())
    fail(batch, fmt::format("printed `{}`, expected a JSON object", shown(line)));
  const auto id = answer.find("id");
  if (id == answer.end() || !id->is_number_integer())
    fail(batch, fmt::format("printed `{}`, expected the `id` of a question, a whole number", shown(line)));
  const auto at = batch.index.find(id->get<int64_t>());
  if (at == batch.index.end())
    fail(batch, fmt::format("printed `{}`, an answer to id {}, which {}", shown(line), id->dump(),
                            id->get<int64_t>() >= 1 && id->get<int64_t>() < batch.first_id ? "was answered before"
                                                                                           : "was not asked"));
  const std::string& name = batch.names[at->second];
  if (batch.answers[at->second])
    fail(batch, fmt::format("printed `{}`, a second answer to id {} ({})", shown(line), id->dump(), name));
  if (const std::string wrong = (*batch.check)(answer); !wrong.empty())
    fail(batch, fmt::format("printed `{}` for id {} ({}): {}", shown(line), id->dump(), name, wrong));
  batch.answers[at->second] = std::move(answer);
  --batch.left;
}

// Reads what is there. False where there was nothing.
bool Channel::read_out(Batch& batch) {
  char buffer[1 << 16];
  const ssize_t got = ::read(process_->out(), buffer, sizeof buffer);
  if (got < 0) return false;
  if (got == 0) {
    batch.out_closed = true;
    if (!pending_.empty()) take_line(batch, std::move(pending_));  // a last line without its end
    pending_.clear();
    return false;
  }
  size_t searched = pending_.size();
  pending_.append(buffer, static_cast<size_t>(got));
  size_t begin = 0;
  for (size_t end; (end = pending_.find('\n', searched)) != std::string::npos; begin = searched = end + 1)
    take_line(batch, pending_.substr(begin, end - begin));
  pending_.erase(0, begin);
  if (pending_.size() > kLongestLine)
    fail(batch, fmt::format("printed `{}` and no end of the line in {} MiB", shown(pending_), kLongestLine >> 20));
  return true;
}

void Channel::read_err() {
  char buffer[1 << 14];
  // Bounded: a program may write without end.
  for (int i = 0; i < 64; ++i) {
    const ssize_t got = ::read(process_->err(), buffer, sizeof buffer);
    if (got <= 0) return;
    err_tail_.append(buffer, static_cast<size_t>(got));
    if (err_tail_.size() > 2 * kTail) err_tail_.erase(0, err_tail_.size() - kTail);
  }
}

std::vector<Json> Channel::exchange(Batch& batch) {
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(std::min(options_.timeout, 1e9)));
  bool err_closed = false;
  while (batch.left > 0 || batch.sent < batch.out.size()) {
    const auto now = Clock::now();
    if (now >= deadline) fail(batch, fmt::format("took longer than {} s for a batch", options_.timeout));
    const bool writing = batch.sent < batch.out.size();
    pollfd fds[3] = {{writing ? process_->in() : -1, POLLOUT, 0},
                     {process_->out(), POLLIN, 0},
                     {err_closed ? -1 : process_->err(), POLLIN, 0}};
    const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - now).count() + 1;
    if (::poll(fds, 3, static_cast<int>(std::min<int64_t>(wait, kSlice))) < 0 && errno != EINTR)
      fail(batch, fmt::format("its pipes cannot be waited for: {}", std::strerror(errno)));
    if (fds[2].revents) {
      read_err();
      err_closed = (fds[2].revents & POLLHUP) && !(fds[2].revents & POLLIN);
    }
    if (fds[1].revents) read_out(batch);
    if (batch.left == 0 && !writing) break;
    if (fds[0].revents) {
      const ssize_t wrote = ::write(process_->in(), batch.out.data() + batch.sent,
                                    std::min<size_t>(batch.out.size() - batch.sent, 1 << 16));
      if (wrote > 0) batch.sent += static_cast<size_t>(wrote);
      if (wrote < 0 && errno != EAGAIN && errno != EINTR) {
        while (read_out(batch)) {
        }
        process_->ended(0.2);
        fail(batch, fmt::format("{}, its standard input closed with {} of {} bytes of questions written",
                                process_->state(), batch.sent, batch.out.size()));
      }
    }
    if (batch.out_closed) {
      process_->ended(0.2);
      fail(batch, process_->ended() ? process_->state() : "closed its standard output");
    }
    // A child of the program may hold the pipes open after its end.
    if (process_->ended()) {
      while (read_out(batch)) {
      }
      if (batch.left > 0) fail(batch, process_->state());
    }
  }
  // What came along with the last answer; anything later is found by the next batch.
  while (read_out(batch)) {
  }
  std::vector<Json> out;
  for (auto& answer : batch.answers) out.push_back(std::move(*answer));
  return out;
}

std::vector<Json> Channel::ask(std::vector<Json> questions, std::span<const std::string> names, const Check& check) {
  if (questions.empty()) return {};
  Batch fresh;
  fresh.names = names;
  fresh.check = &check;
  fresh.first_id = next_id_;
  fresh.left = questions.size();
  fresh.answers.resize(questions.size());
  for (size_t i = 0; i < questions.size(); ++i) {
    Json message = {{"id", next_id_}};
    message.update(questions[i]);
    fresh.index[next_id_++] = i;
    // A completion may end inside a character: what is no UTF-8 is replaced.
    fresh.out += message.dump(-1, ' ', false, Json::error_handler_t::replace);
    fresh.out += '\n';
  }
  for (bool again = false;; again = true) {
    if (!process_) start();
    Batch batch = fresh;
    try {
      return exchange(batch);
    } catch (const Failure& failure) {
      stop();
      if (again || restarted_ >= options_.restarts)
        throw ProgramError(fmt::format(
            "{}{}", failure.what(),
            again ? "\n(the second time: it was started anew and asked again)" : "\n(no restarts are left)"));
      ++restarted_;
    }
  }
}

}  // namespace cairn::rl
