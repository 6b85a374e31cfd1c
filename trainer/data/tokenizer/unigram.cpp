// Unigram (Kudo 2018): the segmentation of a piece whose tokens have the greatest sum of log-probabilities, by Viterbi.
#include <algorithm>
#include <array>
#include <limits>

#include "trainer/data/tokenizer/model.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

// A trie over bytes whose edges lie in one hash table.
class ByteTrie {
 public:
  void reserve(size_t bytes) {
    size_t slots = 16;
    while (slots < bytes * 2) slots *= 2;
    slots_.assign(slots, Slot{});
    mask_ = slots - 1;
  }
  void add(std::string_view key, int32_t value) {
    uint32_t node = 0;
    for (const char& c : key) {
      Slot& slot = slots_[find(node, c)];
      if (slot.key == kEmpty) slot = {key_of(node, c), next_node_++, -1};
      node = slot.child;
      if (&c == &key.back()) slot.value = value;
    }
  }
  // Calls fn(length, value) for every key that TEXT begins with, shortest first.
  template <class Fn>
  void prefixes(std::string_view text, Fn fn) const {
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const Slot& slot = slots_[find(node, text[i])];
      if (slot.key == kEmpty) return;
      node = slot.child;
      if (slot.value >= 0) fn(i + 1, slot.value);
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~0ull;
  struct Slot {
    uint64_t key = kEmpty;
    uint32_t child = 0;
    int32_t value = -1;
  };
  static uint64_t key_of(uint32_t node, char c) {
    return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
  }
  size_t find(uint32_t node, char c) const {
    const uint64_t key = key_of(node, c);
    size_t i = (key * 0x9E3779B97F4A7C15ull >> 29) & mask_;
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask_;
    return i;
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0;
  uint32_t next_node_ = 1;
};

class Unigram : public Model {
 public:
  explicit Unigram(const Json& component) {
    const std::string where = "model Unigram";
    const Json& vocab = component.at("vocab");
    if (!vocab.is_array()) throw std::runtime_error(where + ": 'vocab' is not an array of [token, score]");
    size_t bytes = 0;
    for (size_t id = 0; id < vocab.size(); ++id) {
      const Json& entry = vocab[id];
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number())
        throw std::runtime_error(
            fmt::format("{}: entry {} of 'vocab' is {}, expected [token, score]", where, id, entry.dump()));
      add_token(entry[0].get<std::string>(), static_cast<int64_t>(id), where);
      scores_.push_back(entry[1].get<double>());
      bytes += tokens_.back().size();
    }
    finish_vocab();
    if (const int64_t unknown = field_or<int64_t>(component, "unk_id", -1, where); unknown >= 0) {
      if (unknown >= static_cast<int64_t>(scores_.size()))
        throw std::runtime_error(
            fmt::format("{}: unk_id is {}, the vocabulary has {} tokens", where, unknown, scores_.size()));
      unknown_ = static_cast<int32_t>(unknown);
    }
    trie_.reserve(bytes + 1);
    for (const auto& [token, id] : ids_)
      if (!token.empty()) trie_.add(token, id);
    unknown_score_ = (scores_.empty() ? 0.0 : *std::min_element(scores_.begin(), scores_.end())) - 10.0;
    bytes_.fill(-1);
    if (field_or(component, "byte_fallback", false, where))
      for (int b = 0; b < 256; ++b) bytes_[b] = token_to_id(fmt::format("<0x{:02X}>", b)).value_or(-1);
  }

  void encode(std::string_view piece, WordCache& cache, std::vector<int32_t>& out) const override {
    if (piece.size() > WordCache::kMaxBytes) return segment(piece, out);
    const WordCache::Key key = WordCache::key(piece);
    if (cache.get(key, out)) return;
    const size_t begin = out.size();
    segment(piece, out);
    cache.put(key, std::span(out).subspan(begin));
  }

 private:
  struct Node {
    double score = 0;
    int64_t from = -1;  // where the last token of the best way here starts; -1: none yet
    int32_t id = 0;
  };

  void segment(std::string_view text, std::vector<int32_t>& out) const {
    thread_local std::vector<Node> best;
    best.assign(text.size() + 1, Node{});
    const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
      Node& node = best[end];
      if (node.from < 0 || score > node.score) node = {score, static_cast<int64_t>(begin), id};
    };
    for (size_t at = 0; at < text.size();) {
      const double here = best[at].score;
      const size_t width = utf8_length(static_cast<unsigned char>(text[at]));
      bool single = false;
      trie_.prefixes(text.substr(at), [&](size_t length, int32_t id) {
        offer(at, at + length, scores_[id] + here, id);
        single |= length == width;
      });
      if (!single) {
        if (unknown_ < 0)
          throw std::runtime_error(
              fmt::format("model Unigram: no token for '{}' and no unk_id", text.substr(at, width)));
        offer(at, at + width, unknown_score_ + here, unknown_);
      }
      at += width;
    }
    emit(text, best, out);
  }

  // Neighbouring unknowns are one token, whose text is looked up again and then spelled in bytes where there are
  // tokens.
  void emit(std::string_view text, const std::vector<Node>& best, std::vector<int32_t>& out) const {
    thread_local std::vector<std::pair<size_t, size_t>> parts;  // last first
    parts.clear();
    bool previous_unknown = false;
    for (size_t end = text.size(); end > 0;) {
      const Node& node = best[end];
      const bool unknown = node.id == unknown_;
      if (unknown && previous_unknown) {
        parts.back().first = node.from;
      } else {
        parts.emplace_back(node.from, end);
      }
      previous_unknown = unknown;
      end = node.from;
    }
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      const auto token = text.substr(part->first, part->second - part->first);
      if (const auto id = token_to_id(token)) {
        out.push_back(*id);
      } else if (std::all_of(token.begin(), token.end(),
                             [&](char b) { return bytes_[static_cast<unsigned char>(b)] >= 0; })) {
        for (const char b : token) out.push_back(bytes_[static_cast<unsigned char>(b)]);
      } else {
        out.push_back(unknown_);
      }
    }
  }

  std::vector<double> scores_;
  double unknown_score_;
  int32_t unknown_ = -1;
  std::array<int32_t, 256> bytes_;
  ByteTrie trie_;
};

}  // namespace

std::unique_ptr<Model> make_unigram(const Json& component) {
  if (!component.contains("vocab")) throw std::runtime_error("model Unigram: 'vocab' is missing");
  return std::make_unique<Unigram>(component);
}

}  // namespace cairn::data
