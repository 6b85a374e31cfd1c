// The random numbers of one problem: Philox words of (seed, name of the task, side, index, attempt), one after another.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/random.h"
#include "trainer/rl/tasks/task.h"

namespace cairn::rl {

class Draws {
 public:
  Draws(uint64_t seed, std::string_view task, Side side, int64_t index, int64_t attempt)
      : random_{seed, Purpose::data, stream(task, side, index, attempt)} {}

  // Uniform in 0 .. n-1, n >= 1 (multiply and shift: the bias is below n / 2^64).
  int64_t below(int64_t n) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<int64_t>(static_cast<Wide>(random_.bits64(next_++)) * static_cast<uint64_t>(n) >> 64);
  }
  int64_t between(int64_t least, int64_t most) { return least + below(most - least + 1); }

  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i)
      std::swap(items[i - 1], items[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
  }

 private:
  static uint64_t stream(std::string_view task, Side side, int64_t index, int64_t attempt) {
    std::string key = "task";
    key += '\0';
    key += task;
    key += '\0';
    key += side == Side::train ? 't' : 'e';
    for (const int64_t number : {index, attempt})
      for (int byte = 0; byte < 8; ++byte) key += static_cast<char>(static_cast<uint64_t>(number) >> (8 * byte));
    return hash_name(key.data(), key.size());
  }

  Philox random_;
  uint64_t next_ = 0;
};

}  // namespace cairn::rl
