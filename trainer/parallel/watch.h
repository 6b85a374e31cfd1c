// Signs of life: every rank writes to the store that it lives, and reads the others'. Answers "who is missing?" when an
// exchange fails, and ends exchanges that wait for a rank that fell silent.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "trainer/parallel/transport.h"

namespace cairn::parallel {

class Watch {
 public:
  // store: a connection of the watch's own. host: the rank that hosts the store, -1: the launcher does.
  // Returns when every rank has said hello; throws RankLost naming those that did not within the limit.
  Watch(c10::intrusive_ptr<c10d::Store> store, int rank, int size, int host, std::chrono::milliseconds limit);
  ~Watch();

  // Throws RankLost where a rank is known to be gone. The exchange is aborted when one is found gone later, until
  // forget().
  void guard(Pending* exchange);
  void forget(Pending* exchange);
  void check();  // throws RankLost where a rank is known to be gone

  // After an exchange failed with `what`: waits for the signs to tell who is missing, a few beats at most, and throws
  // RankLost; where every rank lives, std::runtime_error.
  [[noreturn]] void explain(const std::string& what);

  // The last word of this rank. Empty: finished; waits until all have. Otherwise the reason why it stopped.
  void leave(const std::string& error);

 private:
  // What a rank last wrote: "<count>|<state>|<text>|<who>".
  struct Sign {
    std::string raw;
    char state = 'r';  // r running, f finished, g gone (has seen that all finished), e stopped with an error of its
                       // own, x stopped because of others
    std::string text;  // of e: the error; of x: the ranks and the message, as they were thrown there
    std::string who;   // host and process
    std::chrono::steady_clock::time_point changed;
  };
  void say_hello();
  void beat_loop();
  void beat();
  void judge();  // under the mutex: fills verdict_ where a rank is found gone
  void lose(std::vector<int> ranks, const std::string& message);
  std::string describe(int rank) const;
  bool all(const char* states) const;  // of the ranks that are not lost

  c10::intrusive_ptr<c10d::Store> store_;
  const int rank_, size_, host_;
  const std::chrono::milliseconds limit_, period_;
  std::string who_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Sign> signs_;
  std::set<Pending*> guarded_;
  int64_t count_ = 0, rounds_ = 0;
  char state_ = 'r';
  std::string text_;
  bool failing_ = false;  // an exchange failed: a shorter silence is enough
  bool store_gone_ = false, stop_ = false, hurry_ = false, left_ = false;
  std::vector<int> lost_;
  std::string verdict_;
  std::thread thread_;
};

}  // namespace cairn::parallel
