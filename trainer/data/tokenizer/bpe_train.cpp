// Byte-level BPE training. Words are counted in parallel; merging keeps the count of every pair up to date and touches
// only the words that hold the pair just merged.
#include <omp.h>

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "trainer/data/tokenizer/state.h"

namespace cairn::data {
namespace {

using Counts = std::unordered_map<std::string_view, int64_t>;

// Stretches of the documents that can be cut into words each for itself, about a MiB long.
std::vector<std::string_view> stretches(const std::vector<std::string_view>& documents, const TokenFinder& specials,
                                        bool cuts) {
  constexpr size_t kLong = 1 << 20;
  std::vector<std::string_view> out;
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  const auto add = [&](std::string_view text) {
    // A cut before a single space between two characters that are ASCII and no spaces changes no word.
    const auto plain = [&](char c) { return static_cast<unsigned char>(c) < 0x80 && !is_space(c); };
    while (cuts && text.size() > 2 * kLong) {
      size_t at = kLong;
      while (at + 1 < text.size() && !(text[at] == ' ' && plain(text[at - 1]) && plain(text[at + 1]))) ++at;
      if (at + 1 >= text.size()) break;
      out.push_back(text.substr(0, at));
      text.remove_prefix(at);
    }
    if (!text.empty()) out.push_back(text);
  };
  for (const auto document : documents)
    specials.split(document, [&](const TokenFinder::Part& part) {
      if (!part.token) add(part.text);
    });
  return out;
}

struct Word {
  std::vector<int32_t> symbols;
  int64_t count;
};

// The distinct words as byte symbols, in the order of their bytes.
std::vector<Word> count_words(const std::vector<std::string_view>& documents, const BpeTrainOptions& options,
                              const TokenFinder& specials, int threads) {
  const auto pattern = compile_pattern(options.pattern);
  const auto parts = stretches(documents, specials, pattern->cuts_before_single_space());
  std::vector<Counts> counts(threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t i = 0; i < parts.size(); ++i) {
    Counts& mine = counts[omp_get_thread_num()];
    size_t previous = 0;
    Matches matches(*pattern, parts[i]);
    const auto add = [&](size_t begin, size_t end) {
      if (begin < end) ++mine[parts[i].substr(begin, end - begin)];
    };
    for (Match m; matches.next(m); previous = m.end) {
      add(previous, m.begin);
      add(m.begin, m.end);
    }
    add(previous, parts[i].size());
  }
  for (int t = 1; t < threads; ++t) {
    for (const auto& [word, count] : counts[t]) counts[0][word] += count;
    counts[t] = {};
  }
  std::vector<std::pair<std::string_view, int64_t>> sorted(counts[0].begin(), counts[0].end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<Word> words;
  words.reserve(sorted.size());
  for (const auto& [text, count] : sorted) {
    if (text.size() < 2) continue;  // nothing to merge
    Word word{{}, count};
    for (const char c : text) word.symbols.push_back(static_cast<unsigned char>(c));
    words.push_back(std::move(word));
  }
  return words;
}

// Merges in the order in which they are learnt. Symbols: bytes 0-255, then one a merge.
class Merger {
 public:
  explicit Merger(std::vector<Word> words) : words_(std::move(words)) {
    for (int b = 0; b < 256; ++b) bytes_.push_back(std::string(1, static_cast<char>(b)));
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const auto& s = words_[w].symbols;
      for (size_t i = 0; i + 1 < s.size(); ++i) change(s[i], s[i + 1], words_[w].count, w);
    }
    publish();
  }

  // Learns one merge; false where no pair occurs at least `least` times.
  bool step(int64_t least, std::pair<int32_t, int32_t>& merged) {
    while (!heap_.empty()) {
      const Entry top = heap_.top();
      heap_.pop();
      Pair& pair = pairs_[top.pair];
      if (pair.count != top.count) continue;  // an entry with the present count is in the heap too
      if (pair.count < std::max<int64_t>(least, 1)) return false;
      merged = {pair.left, pair.right};
      merge(top.pair);
      return true;
    }
    return false;
  }

  const std::string& bytes(int32_t symbol) const { return bytes_[symbol]; }

 private:
  struct Pair {
    int32_t left, right;
    int64_t count = 0;
    bool changed = false;
    std::vector<uint32_t> words;  // where it occurs or did occur; may name one twice
  };
  struct Entry {
    int64_t count;
    uint32_t pair;
    const Merger* merger;
    bool operator<(const Entry& other) const {
      if (count != other.count) return count < other.count;
      const Pair &a = merger->pairs_[pair], &b = merger->pairs_[other.pair];
      const auto& bytes = merger->bytes_;
      if (const int order = bytes[a.left].compare(bytes[b.left])) return order < 0;
      return bytes[a.right] < bytes[b.right];
    }
  };

  void change(int32_t left, int32_t right, int64_t by, uint32_t word) {
    const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    const auto [at, made] = index_.try_emplace(key, static_cast<uint32_t>(pairs_.size()));
    if (made) pairs_.push_back({left, right});
    Pair& pair = pairs_[at->second];
    pair.count += by;
    if (by > 0 && (pair.words.empty() || pair.words.back() != word)) pair.words.push_back(word);
    if (!pair.changed) {
      pair.changed = true;
      changed_.push_back(at->second);
    }
  }

  void publish() {
    for (const uint32_t p : changed_) {
      pairs_[p].changed = false;
      if (pairs_[p].count > 0) heap_.push({pairs_[p].count, p, this});
    }
    changed_.clear();
  }

  void merge(uint32_t chosen) {
    const int32_t left = pairs_[chosen].left, right = pairs_[chosen].right;
    // Two merges may spell the same bytes: they are one symbol.
    std::string joined = bytes_[left] + bytes_[right];
    const auto [at, fresh] = symbol_of_.try_emplace(joined, static_cast<int32_t>(bytes_.size()));
    const int32_t made = at->second;
    if (fresh) bytes_.push_back(std::move(joined));
    const std::vector<uint32_t> words = std::move(pairs_[chosen].words);
    for (const uint32_t w : words) rewrite(w, left, right, made);
    publish();
  }

  // Joins the pair in one word. The pairs that touch a joined symbol are taken off and put back as they are now.
  void rewrite(uint32_t w, int32_t left, int32_t right, int32_t made) {
    auto& s = words_[w].symbols;
    const int64_t count = words_[w].count;
    const size_t n = s.size();
    size_t out = 0;
    bool joined_before = false;  // the symbol at out - 1 is new
    for (size_t i = 0; i < n;) {
      const bool join = i + 1 < n && s[i] == left && s[i + 1] == right;
      const int32_t symbol = join ? made : s[i];
      if (join) change(left, right, -count, w);
      if (i > 0 && (join || joined_before)) {
        change(joined_before ? right : s_before_, s[i], -count, w);
        change(joined_before ? made : s_before_, symbol, count, w);
      }
      s_before_ = s[i];
      joined_before = join;
      i += join ? 2 : 1;
      s[out++] = symbol;
    }
    s.resize(out);
  }

  std::vector<Word> words_;
  std::vector<std::string> bytes_;                      // by symbol
  std::unordered_map<std::string, int32_t> symbol_of_;  // the joined ones
  std::vector<Pair> pairs_;
  std::unordered_map<uint64_t, uint32_t> index_;
  std::vector<uint32_t> changed_;
  std::priority_queue<Entry> heap_;
  int32_t s_before_ = -1;
};

}  // namespace

std::shared_ptr<const Tokenizer> train_bpe(const std::vector<std::string_view>& documents,
                                           const BpeTrainOptions& options) {
  const auto specials_count = static_cast<int64_t>(options.special_tokens.size());
  if (options.vocab_size < 256 + specials_count)
    throw std::invalid_argument(
        fmt::format("tokenizer: vocab_size is {}, but the 256 bytes and {} special tokens need {}", options.vocab_size,
                    specials_count, 256 + specials_count));
  std::vector<AddedToken> specials;
  for (const std::string& content : options.special_tokens) {
    if (content.empty()) throw std::invalid_argument("tokenizer: a special token is empty");
    specials.push_back({.content = content, .special = true});
  }
  TokenFinder finder;
  for (const AddedToken& special : specials) finder.add(special.content, &special);

  const int threads = options.threads > 0 ? options.threads : omp_get_max_threads();
  Merger merger(count_words(documents, options, finder, threads));

  std::vector<std::string> tokens = options.special_tokens;
  for (int b = 0; b < 256; ++b) tokens.push_back(byte_to_char(static_cast<unsigned char>(b)));
  std::sort(tokens.begin() + specials_count, tokens.end());  // by the stand-in's code point
  std::unordered_set<std::string> taken(tokens.begin(), tokens.end());
  const auto spelled = [&](int32_t symbol) {
    std::string out;
    for (const char c : merger.bytes(symbol)) out += byte_to_char(static_cast<unsigned char>(c));
    return out;
  };
  std::vector<std::pair<std::string, std::string>> merges;
  std::pair<int32_t, int32_t> pair;
  while (static_cast<int64_t>(tokens.size()) < options.vocab_size && merger.step(options.min_frequency, pair)) {
    merges.emplace_back(spelled(pair.first), spelled(pair.second));
    std::string token = merges.back().first + merges.back().second;
    if (taken.insert(token).second) tokens.push_back(std::move(token));
  }
  return Tokenizer::from_json(byte_level_json(tokens, merges, options.special_tokens, options.pattern),
                              "the trained tokenizer");
}

}  // namespace cairn::data
