// Byte-pair encoding (Sennrich 2016): of the neighbouring symbols of a piece the pair that was learnt first, leftmost,
// is joined until no learnt pair is left.
#include <array>
#include <queue>

#include "trainer/data/tokenizer/model.h"
#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

// (left id, right id) -> what they join to and how early that was learnt. Open addressing.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  static constexpr uint32_t kNone = 0xFFFFFFFFu;

  void reserve(size_t merges) {
    size_t slots = 16;
    while (slots < merges * 2) slots *= 2;
    slots_.assign(slots, Slot{});
    mask_ = slots - 1;
  }
  // A pair that is there already gets the new value, as in the official library.
  void put(int32_t left, int32_t right, Merge merge) {
    Slot& slot = slots_[find(left, right)];
    slot = {left, right, merge};
  }
  // Rank kNone where the pair was not learnt.
  Merge get(int32_t left, int32_t right) const { return slots_[find(left, right)].merge; }

 private:
  struct Slot {
    int32_t left = -1, right = -1;
    Merge merge = {kNone, -1};
  };
  size_t find(int32_t left, int32_t right) const {
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    size_t i = (key * 0x9E3779B97F4A7C15ull >> 29) & mask_;
    while (slots_[i].left >= 0 && (slots_[i].left != left || slots_[i].right != right)) i = (i + 1) & mask_;
    return i;
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

class Bpe : public Model {
 public:
  Bpe(const Json& component, bool byte_level) : byte_level_(byte_level) {
    const std::string where = "model BPE";
    if (const double p = field_or(component, "dropout", 0.0, where); p != 0.0)
      throw std::runtime_error(fmt::format("{}: dropout {} is not supported: the ids would be random", where, p));
    prefix_ = field_or<std::string>(component, "continuing_subword_prefix", "", where);
    suffix_ = field_or<std::string>(component, "end_of_word_suffix", "", where);
    fuse_unknown_ = field_or(component, "fuse_unk", false, where);
    byte_fallback_ = field_or(component, "byte_fallback", false, where);
    ignore_merges_ = field_or(component, "ignore_merges", false, where);
    read_vocab(component.at("vocab"), where);
    read_merges(component.at("merges"), where);
    if (const auto unknown = field_or<std::string>(component, "unk_token", "", where); !unknown.empty()) {
      has_unknown_ = true;
      unknown_ = token_to_id(unknown).value_or(-1);
      unknown_name_ = unknown;
    }
    prepare();
  }

  void encode(std::string_view piece, WordCache& cache, std::vector<int32_t>& out) const override {
    if (!cuts_at_metaspace_) return encode_word(piece, cache, out);
    // No merge joins anything to a metaspace that follows another character: the words are independent.
    size_t begin = 0;
    for (size_t at; (at = piece.find(kMetaspace, past_metaspaces(piece, begin))) != std::string_view::npos; begin = at)
      encode_word(piece.substr(begin, at - begin), cache, out);
    encode_word(piece.substr(begin), cache, out);
  }

 private:
  static constexpr std::string_view kMetaspace = "\xE2\x96\x81";

  // Past the run of metaspaces at FROM.
  static size_t past_metaspaces(std::string_view piece, size_t from) {
    while (piece.substr(from).starts_with(kMetaspace)) from += kMetaspace.size();
    return from;
  }

  void read_merges(const Json& merges, const std::string& where) {
    if (!merges.is_array()) throw std::runtime_error(where + ": 'merges' is not an array");
    table_.reserve(merges.size() + 1);
    uint32_t rank = 0;
    for (const Json& merge : merges) {
      std::string left, right;
      if (merge.is_string()) {
        const auto& line = merge.get_ref<const std::string&>();
        if (line.starts_with("#version")) continue;
        const size_t space = line.find(' ');
        if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
          throw std::runtime_error(
              fmt::format("{}: merge {} is '{}', expected two tokens with one space between", where, rank, line));
        left = line.substr(0, space);
        right = line.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        throw std::runtime_error(fmt::format("{}: merge {} is {}, expected two tokens", where, rank, merge.dump()));
      }
      if (right.size() < prefix_.size())
        throw std::runtime_error(
            fmt::format("{}: merge {}: '{}' does not begin with '{}'", where, rank, right, prefix_));
      const std::string joined = left + right.substr(prefix_.size());
      for (const std::string* token : std::initializer_list<const std::string*>{&left, &right, &joined})
        if (!ids_.contains(*token))
          throw std::runtime_error(
              fmt::format("{}: merge {} needs the token '{}', which the vocabulary lacks", where, rank, *token));
      table_.put(ids_.at(left), ids_.at(right), {rank++, ids_.at(joined)});
      if (!left.ends_with(kMetaspace) && right.starts_with(kMetaspace)) joins_to_metaspace_ = true;
    }
  }

  void prepare() {
    bytes_.fill(-1);
    for (int b = 0; b < 256; ++b) {
      const auto id = byte_level_ ? token_to_id(byte_to_char(static_cast<unsigned char>(b)))
                                  : token_to_id(fmt::format("<0x{:02X}>", b));
      if (id) bytes_[b] = *id;
    }
    if (byte_level_) {
      // Whole tokens by their bytes, for ignore_merges.
      if (ignore_merges_)
        for (size_t id = 0; id < tokens_.size(); ++id) {
          std::string raw;
          bool spelled = has_[id] && !tokens_[id].empty();
          for_each_char(tokens_[id], [&](uint32_t c, std::string_view) {
            const int byte = char_to_byte(c);
            if (byte < 0) spelled = false;
            raw += static_cast<char>(byte);
          });
          if (spelled) whole_.emplace(std::move(raw), static_cast<int32_t>(id));
        }
      return;
    }
    chars_.assign(0x10000, -1);
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const std::string& token = tokens_[id];
      if (!has_[id] || token.empty() ||
          token.size() != static_cast<size_t>(utf8_length(static_cast<unsigned char>(token[0]))))
        continue;
      int length;
      const uint32_t c = decode_utf8(token.data(), length);
      if (c < 0x10000) chars_[c] = static_cast<int32_t>(id);
    }
    cuts_at_metaspace_ = !joins_to_metaspace_ && prefix_.empty() && suffix_.empty() && !ignore_merges_ &&
                         token_to_id(kMetaspace).has_value();
  }

  void encode_word(std::string_view word, WordCache& cache, std::vector<int32_t>& out) const {
    if (word.empty()) return;
    if (word.size() > WordCache::kMaxBytes) return merge_word(word, out);
    const WordCache::Key key = WordCache::key(word);
    if (cache.get(key, out)) return;
    const size_t begin = out.size();
    merge_word(word, out);
    cache.put(key, std::span(out).subspan(begin));
  }

  void merge_word(std::string_view word, std::vector<int32_t>& out) const {
    if (ignore_merges_) {
      if (byte_level_) {
        const auto at = whole_.find(std::string(word));
        if (at != whole_.end()) return out.push_back(at->second);
      } else if (const auto id = token_to_id(word)) {
        return out.push_back(*id);
      }
    }
    thread_local std::vector<int32_t> symbols;
    symbols.clear();
    spell(word, symbols);
    if (symbols.size() <= 32) {
      merge_short(symbols);
    } else {
      merge_long(symbols);
    }
    out.insert(out.end(), symbols.begin(), symbols.end());
  }

  // The symbols that a word starts as: a character each, or bytes or the unknown token where the vocabulary lacks it.
  void spell(std::string_view word, std::vector<int32_t>& symbols) const {
    if (byte_level_) return spell_bytes(word, symbols);
    bool pending = false;  // an unknown token that waits for the next known one (fuse_unk joins those that follow)
    for (size_t i = 0; i < word.size();) {
      int length;
      const uint32_t c = decode_utf8(word.data() + i, length);
      const bool first = i == 0, last = i + length == word.size();
      const auto bytes = word.substr(i, length);
      i += length;
      int32_t id;
      if (c < 0x10000 && prefix_.empty() && suffix_.empty()) {
        id = chars_[c];
      } else {
        std::string token = (first ? "" : prefix_) + std::string(bytes) + (last ? suffix_ : "");
        id = token_to_id(token).value_or(-1);
      }
      if (id >= 0) {
        if (pending) symbols.push_back(unknown_);
        pending = false;
        symbols.push_back(id);
      } else if (byte_fallback_ && prefix_.empty() && suffix_.empty() && has_bytes(bytes)) {
        for (const char b : bytes) symbols.push_back(bytes_[static_cast<unsigned char>(b)]);
      } else if (has_unknown_) {
        check_unknown();
        if (pending && !fuse_unknown_) symbols.push_back(unknown_);
        pending = true;
      }
    }
    if (pending) symbols.push_back(unknown_);
  }

  void spell_bytes(std::string_view word, std::vector<int32_t>& symbols) const {
    bool pending = false;
    for (const char b : word) {
      const int32_t id = bytes_[static_cast<unsigned char>(b)];
      if (id >= 0) {
        if (pending) symbols.push_back(unknown_);
        pending = false;
        symbols.push_back(id);
      } else if (has_unknown_) {
        check_unknown();
        if (pending && !fuse_unknown_) symbols.push_back(unknown_);
        pending = true;
      }
    }
    if (pending) symbols.push_back(unknown_);
  }

  bool has_bytes(std::string_view bytes) const {
    for (const char b : bytes)
      if (bytes_[static_cast<unsigned char>(b)] < 0) return false;
    return true;
  }

  void check_unknown() const {
    if (unknown_ < 0)
      throw std::runtime_error(
          fmt::format("model BPE: the text needs the unknown token '{}', which the vocabulary lacks", unknown_name_));
  }

  // Looks over all pairs for each merge: best for the few symbols of a word.
  void merge_short(std::vector<int32_t>& symbols) const {
    size_t n = symbols.size();
    if (n < 2) return;
    MergeTable::Merge pairs[32];
    for (size_t i = 0; i + 1 < n; ++i) pairs[i] = table_.get(symbols[i], symbols[i + 1]);
    while (n > 1) {
      size_t best = 0;
      for (size_t i = 1; i + 1 < n; ++i)
        if (pairs[i].rank < pairs[best].rank) best = i;
      if (pairs[best].rank == MergeTable::kNone) break;
      symbols[best] = pairs[best].id;
      for (size_t i = best + 1; i + 1 < n; ++i) symbols[i] = symbols[i + 1];
      for (size_t i = best + 1; i + 2 < n; ++i) pairs[i] = pairs[i + 1];
      --n;
      if (best + 1 < n) pairs[best] = table_.get(symbols[best], symbols[best + 1]);
      if (best > 0) pairs[best - 1] = table_.get(symbols[best - 1], symbols[best]);
    }
    symbols.resize(n);
  }

  // A heap of pairs over a linked list: n log n for a text without a break.
  void merge_long(std::vector<int32_t>& symbols) const {
    struct Node {
      int32_t id;
      int32_t previous, next;  // -1: none
    };
    struct Candidate {
      uint32_t rank;
      int32_t position, id, left, right;
      bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : position > other.position;
      }
    };
    const auto n = static_cast<int32_t>(symbols.size());
    std::vector<Node> nodes(n);
    for (int32_t i = 0; i < n; ++i) nodes[i] = {symbols[i], i - 1, i + 1 < n ? i + 1 : -1};
    std::vector<Candidate> initial;
    const auto candidate = [&](int32_t at, auto give) {
      const int32_t left = nodes[at].id, right = nodes[nodes[at].next].id;
      const MergeTable::Merge merge = table_.get(left, right);
      if (merge.rank != MergeTable::kNone) give(Candidate{merge.rank, at, merge.id, left, right});
    };
    for (int32_t i = 0; i + 1 < n; ++i) candidate(i, [&](const Candidate& c) { initial.push_back(c); });
    std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(initial));
    while (!queue.empty()) {
      const Candidate top = queue.top();
      queue.pop();
      Node& node = nodes[top.position];
      if (node.id != top.left || node.next < 0 || nodes[node.next].id != top.right)
        continue;  // one of the two has merged since
      node.id = top.id;
      Node& gone = nodes[node.next];
      gone.id = -1;
      node.next = gone.next;
      if (node.next >= 0) nodes[node.next].previous = top.position;
      const auto push = [&](const Candidate& c) { queue.push(c); };
      if (node.previous >= 0) candidate(node.previous, push);
      if (node.next >= 0) candidate(top.position, push);
    }
    symbols.clear();
    for (int32_t i = 0; i >= 0; i = nodes[i].next) symbols.push_back(nodes[i].id);
  }

  bool byte_level_, fuse_unknown_, byte_fallback_, ignore_merges_;
  bool has_unknown_ = false, joins_to_metaspace_ = false, cuts_at_metaspace_ = false;
  int32_t unknown_ = -1;
  std::string unknown_name_, prefix_, suffix_;
  MergeTable table_;
  std::array<int32_t, 256> bytes_;  // id of a byte, or of its fallback token
  std::vector<int32_t> chars_;      // id of a character below 0x10000
  std::unordered_map<std::string, int32_t> whole_;
};

}  // namespace

std::unique_ptr<Model> make_bpe(const Json& component, bool byte_level) {
  for (const char* key : {"vocab", "merges"})
    if (!component.contains(key)) throw std::runtime_error(fmt::format("model BPE: '{}' is missing", key));
  return std::make_unique<Bpe>(component, byte_level);
}

}  // namespace cairn::data
