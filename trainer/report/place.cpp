#include "trainer/report/place.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace cairn::report {

Place place_of(const std::string& name) {
  Place place;
  std::vector<std::string> words;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string word = name.substr(begin, end - begin);
    const bool number = !word.empty() && word.size() < 10 &&
                        std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!number)
      words.push_back(word);
    else if (place.layer < 0)
      place.layer = std::stoll(word), words.clear();  // what stands before the layer is the same for all
    else
      place.index.push_back(std::stoll(word));
    begin = end + 1;
  }
  if (place.layer < 0) return {.part = name};
  if (!words.empty() && words.back() == "weight") words.pop_back();
  place.part = fmt::format("{}", fmt::join(words, "."));
  return place;
}

}  // namespace cairn::report
