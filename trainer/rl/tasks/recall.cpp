#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "trainer/rl/tasks/generated.h"

namespace cairn::rl {
namespace {

struct Level {
  int64_t pairs, gap;
};
constexpr Level kTable[kLevels] = {{2, 0}, {4, 4}, {8, 8}, {8, 16}, {16, 16}, {16, 32}, {32, 64}, {64, 64}};

const char* const kNoise[] = {"the",   "river", "runs",  "past",  "an",    "old",   "mill",  "where", "stone", "and",
                              "water", "meet",  "under", "grey",  "light", "while", "birds", "turn",  "over",  "a",
                              "field", "of",    "tall",  "grass", "near",  "quiet", "roads", "that",  "lead",  "north"};
constexpr int64_t kKeys = 17576;  // three letters

std::string key_name(int64_t n) {
  return {static_cast<char>('A' + n / 676), static_cast<char>('A' + n / 26 % 26), static_cast<char>('A' + n % 26)};
}

class Recall : public GeneratedTask {
 public:
  explicit Recall(const config::TaskOptions& options)
      : GeneratedTask(options, "{text}\nWhat is the value of {key}? Give it after ####.\n") {}

 private:
  Drawn draw(Draws& draws, int level) const override {
    const auto& row = kTable[level - 1];
    const int64_t pairs = options_.pairs.value_or(row.pairs), gap = options_.gap.value_or(row.gap);
    std::vector<int64_t> keys;  // all different, so that a question has one answer
    while (static_cast<int64_t>(keys.size()) < pairs)
      if (const int64_t key = draws.below(kKeys); std::find(keys.begin(), keys.end(), key) == keys.end())
        keys.push_back(key);
    const int64_t asked = draws.below(pairs);
    std::string text, value;
    for (int64_t i = 0; i < pairs; ++i) {
      for (int64_t w = 0; w < gap; ++w) {
        text += kNoise[draws.below(std::size(kNoise))];
        text += ' ';
      }
      const std::string number = fmt::format("{:04d}", draws.below(10000));
      text += fmt::format("{} = {}.{}", key_name(keys[i]), number, i + 1 < pairs ? " " : "");
      if (i == asked) value = number;
    }
    const std::string key = key_name(keys[asked]);
    const int64_t distance = (pairs - 1 - asked) * (gap + 3);  // a pair is three words
    const std::string content = text + "\n" + key;
    return {content,
            value,
            {{"question", fmt::format("What is the value of {}?", key)},
             {"text", std::move(text)},
             {"key", key},
             {"distance", distance}}};
  }
};

}  // namespace

std::unique_ptr<Task> make_recall(const config::TaskOptions& options) { return std::make_unique<Recall>(options); }

}  // namespace cairn::rl
