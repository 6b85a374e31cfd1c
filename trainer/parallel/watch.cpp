#include "trainer/parallel/watch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace cairn::parallel {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::string key(int rank) { return fmt::format("sign/{}", rank); }

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const std::vector<uint8_t>& data) { return {data.begin(), data.end()}; }

// Half a second, shorter for short limits, longer for many ranks (the store answers all of them).
milliseconds period_of(milliseconds limit, int size) {
  const auto usual = milliseconds(500) * std::max(1, size / 32);
  return std::clamp<milliseconds>(limit / 8, milliseconds(50), usual);
}

std::string this_process() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return fmt::format("process {} on {}", getpid(), host);
}

std::string ranks_text(const std::vector<int>& ranks, int size) {
  return fmt::format("{} {} of {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "), size);
}

std::vector<int> numbers_of(const std::string& text) {  // "1,2,3", up to a colon
  std::vector<int> numbers;
  if (text.empty() || text[0] == ':') return numbers;
  for (size_t at = 0; at < text.size() && (at == 0 || text[at - 1] == ',');) {
    numbers.push_back(std::atoi(text.c_str() + at));
    at = std::min(text.find_first_of(",:", at), text.size() - 1) + 1;
  }
  return numbers;
}

constexpr const char* kLate = "late";
constexpr const char* kAdvice = "; this run cannot go on without it: resume from the last checkpoint";

}  // namespace

Watch::Watch(c10::intrusive_ptr<c10d::Store> store, int rank, int size, int host, milliseconds limit)
    : store_(std::move(store)),
      rank_(rank),
      size_(size),
      host_(host),
      limit_(limit),
      period_(period_of(limit, size)),
      who_(this_process()),
      signs_(size) {
  say_hello();
  for (auto& sign : signs_) sign.changed = Clock::now();
  thread_ = std::thread([this] { beat_loop(); });
}

void Watch::say_hello() {
  const auto begin = Clock::now();
  const auto late = [&](const std::vector<int>& ranks) {
    return RankLost(ranks,
                    fmt::format("{} did not come within {:.1f} s of the start; look at what {} printed",
                                ranks_text(ranks, size_), limit_.count() / 1e3, ranks.size() == 1 ? "it" : "they"));
  };
  std::vector<int> missing;
  for (int other = 0; other < size_; ++other)
    if (other != rank_) missing.push_back(other);
  try {
    store_->set(key(rank_), bytes(fmt::format("0|r||{}", who_)));
    while (true) {
      std::erase_if(missing, [&](int other) { return store_->check({key(other)}); });
      if (missing.empty()) return;
      if (store_->check({kLate})) throw late(numbers_of(text_of(store_->get(kLate))));
      if (Clock::now() - begin > limit_) {
        store_->set(kLate, bytes(fmt::format("{}", fmt::join(missing, ","))));
        if (rank_ == host_)
          std::this_thread::sleep_for(milliseconds(500));  // the others read it before the store closes
        throw late(missing);
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
  } catch (const RankLost&) {
    throw;
  } catch (const std::exception&) {
    throw RankLost(
        host_ >= 0 ? std::vector<int>{host_} : std::vector<int>{},
        fmt::format("{} closed the store of this run while the ranks were gathering; look at what it printed",
                    host_ >= 0 ? fmt::format("rank {} of {}", host_, size_) : "the launcher"));
  }
}

Watch::~Watch() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watch::beat_loop() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (!store_gone_) {
      lock.unlock();
      beat();
      lock.lock();
    }
    ++rounds_;
    judge();
    changed_.notify_all();
    const auto rest = hurry_ ? std::min(period_, milliseconds(20)) : period_;
    const int64_t round = rounds_;
    changed_.wait_for(lock, rest, [&] { return stop_ || (hurry_ && round != rounds_); });
  }
}

void Watch::beat() {
  try {
    std::string mine;
    std::vector<std::string> keys;
    std::vector<int> others;
    {
      std::lock_guard lock(mutex_);
      mine = fmt::format("{}|{}|{}|{}", ++count_, state_, text_, who_);
    }
    for (int other = 0; other < size_; ++other)
      if (other != rank_) {
        keys.push_back(key(other));
        others.push_back(other);
      }
    store_->set(key(rank_), bytes(mine));
    const auto values = store_->multiGet(keys);
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < others.size(); ++i) {
      Sign& sign = signs_[others[i]];
      std::string raw = text_of(values[i]);
      if (raw == sign.raw) continue;
      sign.raw = std::move(raw);
      sign.changed = Clock::now();
      const size_t first = sign.raw.find('|'), last = sign.raw.rfind('|');
      sign.state = sign.raw[first + 1];
      sign.text = sign.raw.substr(first + 3, last - first - 3);
      sign.who = sign.raw.substr(last + 1);
    }
  } catch (const std::exception&) {
    std::lock_guard lock(mutex_);
    store_gone_ = true;
  }
}

std::string Watch::describe(int rank) const {
  const Sign& sign = signs_[rank];
  const double silent = std::chrono::duration<double>(Clock::now() - sign.changed).count();
  return fmt::format("{}, silent for {:.1f} s", sign.who.empty() ? "never seen" : sign.who, silent);
}

bool Watch::all(const char* states) const {
  for (int other = 0; other < size_; ++other)
    if (other != rank_ && std::strchr(states, signs_[other].state) == nullptr &&
        std::find(lost_.begin(), lost_.end(), other) == lost_.end())
      return false;
  return true;
}

void Watch::lose(std::vector<int> ranks, const std::string& message) {
  lost_ = std::move(ranks);
  verdict_ = message;
  for (Pending* exchange : guarded_) exchange->abort();
}

void Watch::judge() {
  if (!verdict_.empty() || state_ != 'r') return;
  for (int other = 0; other < size_; ++other)  // an error of its own comes before what followed from it
    if (signs_[other].state == 'e')
      return lose({other},
                  fmt::format("rank {} of {} stopped ({}): {}", other, size_, signs_[other].who, signs_[other].text));
  for (int other = 0; other < size_; ++other)
    if (signs_[other].state == 'x') {
      const std::string& text = signs_[other].text;
      return lose(numbers_of(text), text.substr(text.find(':') + 1));
    }
  if (store_gone_)
    return lose(host_ >= 0 ? std::vector<int>{host_} : std::vector<int>{},
                host_ >= 0 ? fmt::format("rank {} of {} is lost ({}): it held the store of this run and closed it{}",
                                         host_, size_, describe(host_), kAdvice)
                           : "the launcher is gone: it held the store of this run and closed it");
  const auto enough = failing_ ? std::min<Clock::duration>(limit_, 4 * period_) : Clock::duration(limit_);
  std::vector<int> silent;
  for (int other = 0; other < size_; ++other)
    if (other != rank_ && signs_[other].state == 'r' && Clock::now() - signs_[other].changed >= enough)
      silent.push_back(other);
  if (silent.empty()) return;
  std::vector<std::string> details;
  for (int other : silent) details.push_back(describe(other));
  lose(silent, fmt::format("{} {} lost ({}){}", ranks_text(silent, size_), silent.size() == 1 ? "is" : "are",
                           fmt::join(details, "; "), kAdvice));
}

void Watch::guard(Pending* exchange) {
  std::lock_guard lock(mutex_);
  if (!verdict_.empty()) throw RankLost(lost_, verdict_);
  guarded_.insert(exchange);
}

void Watch::check() {
  std::lock_guard lock(mutex_);
  if (!verdict_.empty()) throw RankLost(lost_, verdict_);
}

void Watch::forget(Pending* exchange) {
  std::lock_guard lock(mutex_);
  guarded_.erase(exchange);
}

void Watch::explain(const std::string& what) {
  std::unique_lock lock(mutex_);
  failing_ = true;
  // A dead rank is silent for four beats at the latest two beats after its last one.
  changed_.wait_for(lock, 8 * period_ + milliseconds(500), [&] { return !verdict_.empty(); });
  if (!verdict_.empty()) throw RankLost(lost_, verdict_);
  throw std::runtime_error(
      fmt::format("an exchange between the ranks failed although all {} ranks live: {}", size_, what));
}

void Watch::leave(const std::string& error) {
  std::unique_lock lock(mutex_);
  if (left_) return;
  left_ = true;
  hurry_ = true;
  std::string text = error;
  std::replace(text.begin(), text.end(), '|', '/');
  if (error.empty())
    state_ = 'f';
  else if (!verdict_.empty())
    state_ = 'x', text_ = fmt::format("{}:{}", fmt::join(lost_, ","), verdict_);
  else
    state_ = 'e', text_ = text;
  std::replace(text_.begin(), text_.end(), '|', '/');
  const auto told = rounds_ + 2;  // this word has been written then
  ++rounds_;                      // wakes the thread
  changed_.notify_all();
  const auto until = [&](milliseconds most, auto done) { changed_.wait_for(lock, most, done); };
  until(std::min(limit_, milliseconds(5000)), [&] { return store_gone_ || rounds_ > told; });
  if (error.empty()) {
    // Connections close when all have come here; the host of the store goes when the others are gone.
    until(limit_, [&] { return store_gone_ || all("fgex"); });
    state_ = 'g';
    const auto seen = rounds_ + 2;
    until(milliseconds(2000), [&] { return store_gone_ || rounds_ > seen; });
    if (rank_ == host_) until(std::min(limit_, milliseconds(10000)), [&] { return all("gex"); });
  } else if (rank_ == host_) {
    // Long enough for the others to read why, and no longer.
    until(std::min(limit_, 8 * period_ + milliseconds(1000)), [&] { return all("gex"); });
  }
}

}  // namespace cairn::parallel
