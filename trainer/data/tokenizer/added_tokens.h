// Added and special tokens: strings that are found in the text before the model sees it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cairn::data {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the whitespace before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for in the normalized text
  bool special = false;
  std::string spelled;  // what decoding gives: the content, normalized where `normalized` says so
};

// Finds the leftmost, of those the longest, of a set of strings.
class TokenFinder {
 public:
  // `pattern` is found, TOKEN (which must outlive this) is what it stands for. The first of equal patterns counts.
  void add(const std::string& pattern, const AddedToken* token);
  bool empty() const { return nodes_.size() == 1; }

  struct Part {
    std::string_view text;
    const AddedToken* token;  // null: ordinary text
  };
  // Calls fn(Part) for the parts that cover TEXT in order.
  template <class Fn>
  void split(std::string_view text, Fn fn) const {
    size_t done = 0, from = 0;
    Hit hit;
    while (find(text, from, hit)) {
      from = hit.end;
      size_t begin = hit.begin, end = hit.end;
      if (!fits(text, *hit.token, done, begin, end)) continue;
      if (done < begin) fn(Part{text.substr(done, begin - done), nullptr});
      fn(Part{text.substr(begin, end - begin), hit.token});
      done = end;
    }
    if (done < text.size() || text.empty()) fn(Part{text.substr(done), nullptr});
  }

 private:
  struct Node {
    const AddedToken* token = nullptr;
    std::vector<std::pair<unsigned char, uint32_t>> children;
  };
  struct Hit {
    size_t begin, end;
    const AddedToken* token;
  };
  bool find(std::string_view text, size_t from, Hit& hit) const;
  // Applies single_word, lstrip and rstrip; false where the token does not count here.
  static bool fits(std::string_view text, const AddedToken& token, size_t done, size_t& begin, size_t& end);

  std::vector<Node> nodes_{1};
  bool starts_[256] = {};
};

}  // namespace cairn::data
