#include "trainer/data/tokenizer/pre_tokenizer.h"

#include <array>
#include <map>

#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior parse_behavior(const std::string& name, const std::string& where) {
  static const std::map<std::string, Behavior> kTable = {{"Removed", Behavior::kRemoved},
                                                         {"Isolated", Behavior::kIsolated},
                                                         {"MergedWithPrevious", Behavior::kMergedWithPrevious},
                                                         {"MergedWithNext", Behavior::kMergedWithNext},
                                                         {"Contiguous", Behavior::kContiguous}};
  const auto at = kTable.find(name);
  if (at == kTable.end()) throw std::runtime_error(where + ": behavior '" + name + "' is not supported");
  return at->second;
}

struct Span {
  size_t begin, end;
  bool match;
};

// Joins SPANS, which cover a text in order, as the official library's NormalizedString::split does.
void apply_behavior(std::vector<Span>& spans, Behavior behavior) {
  std::vector<Span> out;
  bool previous = false;
  switch (behavior) {
    case Behavior::kIsolated:
    case Behavior::kRemoved:
      return;
    case Behavior::kContiguous:
      for (const Span& s : spans) {
        if (s.match == previous && !out.empty()) {
          out.back().end = s.end;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      break;
    case Behavior::kMergedWithPrevious:
      for (const Span& s : spans) {
        if (s.match && !previous && !out.empty()) {
          out.back().end = s.end;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto s = spans.rbegin(); s != spans.rend(); ++s) {
        if (s->match && !previous && !out.empty()) {
          out.back().begin = s->begin;
        } else {
          out.push_back(*s);
        }
        previous = s->match;
      }
      out = {out.rbegin(), out.rend()};
      break;
  }
  spans = std::move(out);
}

// Cuts PIECE by the matches that NEXT_MATCH(from, match) finds one after the other.
template <class Next>
void split_by(Piece piece, Behavior behavior, bool invert, Sink sink, Next next_match) {
  const auto emit = [&](size_t begin, size_t end) {
    if (begin < end) sink({piece.text.substr(begin, end - begin), piece.head && begin == 0});
  };
  const bool plain = behavior == Behavior::kIsolated || behavior == Behavior::kRemoved;
  const bool drop_matches = behavior == Behavior::kRemoved && !invert;
  const bool drop_gaps = behavior == Behavior::kRemoved && invert;
  std::vector<Span> spans;
  size_t previous = 0;
  Match m;
  while (next_match(previous, m)) {
    if (plain) {
      if (!drop_gaps) emit(previous, m.begin);
      if (!drop_matches) emit(m.begin, m.end);
    } else {
      if (previous != m.begin) spans.push_back({previous, m.begin, invert});
      spans.push_back({m.begin, m.end, !invert});
    }
    previous = m.end;
  }
  if (plain) {
    if (!drop_gaps) emit(previous, piece.text.size());
    return;
  }
  if (previous != piece.text.size()) spans.push_back({previous, piece.text.size(), invert});
  apply_behavior(spans, behavior);
  for (const Span& s : spans) emit(s.begin, s.end);
}

class Split : public PreTokenizer {
 public:
  Split(std::unique_ptr<Pattern> pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void split(Piece piece, Sink sink) const override {
    Matches matches(*pattern_, piece.text);
    split_by(piece, behavior_, invert_, sink, [&](size_t, Match& m) { return matches.next(m); });
  }

 private:
  std::unique_ptr<Pattern> pattern_;
  Behavior behavior_;
  bool invert_;
};

// Splits at the characters for which IS holds, each a match.
class CharSplit : public PreTokenizer {
 public:
  CharSplit(std::function<bool(uint32_t)> is, Behavior behavior) : is_(std::move(is)), behavior_(behavior) {}
  void split(Piece piece, Sink sink) const override {
    split_by(piece, behavior_, false, sink, [&](size_t from, Match& m) {
      for (size_t i = from; i < piece.text.size();) {
        int length;
        const uint32_t c = decode_utf8(piece.text.data() + i, length);
        if (is_(c)) {
          m = {i, i + length};
          return true;
        }
        i += length;
      }
      return false;
    });
  }

 private:
  std::function<bool(uint32_t)> is_;
  Behavior behavior_;
};

// \w+|[^\w\s]+ with what lies between removed.
class Whitespace : public PreTokenizer {
 public:
  void split(Piece piece, Sink sink) const override {
    const auto kind = [&](uint32_t c) { return char_class(bmp_, c) & kSpace ? 0 : is_word(c) ? 1 : 2; };
    size_t begin = 0;
    int previous = 0;
    for (size_t i = 0; i <= piece.text.size();) {
      int length = 1;
      const int now = i < piece.text.size() ? kind(decode_utf8(piece.text.data() + i, length)) : 0;
      if (now != previous || i == piece.text.size()) {
        if (previous != 0) sink({piece.text.substr(begin, i - begin), piece.head && begin == 0});
        begin = i;
        previous = now;
      }
      i += length;
    }
  }

 private:
  const uint16_t* bmp_ = bmp_classes();
};

class Metaspace : public PreTokenizer {
 public:
  Metaspace(std::string replacement, std::string scheme, bool split)
      : replacement_(std::move(replacement)), always_(scheme == "always"), first_(scheme == "first"), split_(split) {}
  void split(Piece piece, Sink sink) const override {
    std::string text;
    text.reserve(piece.text.size() * 3 / 2 + 8);
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text += c;
      }
    }
    if ((always_ || (first_ && piece.head)) && !text.starts_with(replacement_)) text.insert(0, replacement_);
    if (!split_) return sink({text, piece.head});
    // Every stand-in starts a piece, with what follows it up to the next one.
    for (size_t begin = 0; begin < text.size();) {
      size_t end = text.find(replacement_, begin + 1);
      if (end == std::string::npos) end = text.size();
      sink({std::string_view(text).substr(begin, end - begin), piece.head && begin == 0});
      begin = end;
    }
  }

 private:
  std::string replacement_;
  bool always_, first_, split_;
};

// A space in front where there is none.
class PrefixSpace : public PreTokenizer {
 public:
  void split(Piece piece, Sink sink) const override {
    if (piece.text.starts_with(' ')) return sink(piece);
    const std::string text = " " + std::string(piece.text);
    sink({text, piece.head});
  }
};

class ByteLevelMap : public PreTokenizer {
 public:
  void split(Piece piece, Sink sink) const override {
    std::string text;
    for (const char c : piece.text) text += byte_to_char(static_cast<unsigned char>(c));
    sink({text, piece.head});
  }
};

void append(PreTokenizerChain& chain, const Json& component, const std::string& where) {
  const std::string type = component_type(component, where);
  const std::string here = where + " " + type;
  const auto add = [&](auto stage) { chain.stages.push_back(std::move(stage)); };
  const auto behavior = [&](const char* otherwise) {
    return parse_behavior(field_or<std::string>(component, "behavior", otherwise, here), here);
  };
  if (type == "Sequence") {
    const Json parts = field<Json>(component, "pretokenizers", here);
    for (size_t i = 0; i < parts.size(); ++i) append(chain, parts[i], fmt::format("{}[{}]", where, i));
  } else if (type == "ByteLevel") {
    if (field_or(component, "add_prefix_space", true, here)) add(std::make_unique<PrefixSpace>());
    if (field_or(component, "use_regex", true, here))
      add(std::make_unique<Split>(known_pattern(kGpt2Pattern), Behavior::kIsolated, false));
    add(std::make_unique<ByteLevelMap>());
  } else if (type == "Split") {
    const bool invert = field_or(component, "invert", false, here);
    add(std::make_unique<Split>(make_pattern(field<Json>(component, "pattern", here), here), behavior("Isolated"),
                                invert));
  } else if (type == "Digits") {
    const bool individual = field_or(component, "individual_digits", false, here);
    add(std::make_unique<CharSplit>(is_number, individual ? Behavior::kIsolated : Behavior::kContiguous));
  } else if (type == "Punctuation") {
    add(std::make_unique<CharSplit>(is_punctuation, behavior("Isolated")));
  } else if (type == "Whitespace") {
    add(std::make_unique<Whitespace>());
  } else if (type == "WhitespaceSplit" || type == "BertPreTokenizer") {
    const auto is_space = [bmp = bmp_classes()](uint32_t c) { return (char_class(bmp, c) & kSpace) != 0; };
    add(std::make_unique<CharSplit>(is_space, Behavior::kRemoved));
    if (type == "BertPreTokenizer") add(std::make_unique<CharSplit>(is_punctuation, Behavior::kIsolated));
  } else if (type == "CharDelimiterSplit") {
    const auto delimiter = field<std::string>(component, "delimiter", here);
    add(std::make_unique<Split>(literal_pattern(delimiter), Behavior::kRemoved, false));
  } else if (type == "Metaspace") {
    // Older files say add_prefix_space alone.
    const bool prefix = field_or(component, "add_prefix_space", true, here);
    const auto scheme = field_or<std::string>(component, "prepend_scheme", prefix ? "always" : "never", here);
    if (scheme != "always" && scheme != "first" && scheme != "never")
      throw std::runtime_error(here + ": prepend_scheme '" + scheme + "' is not one of always, first, never");
    add(std::make_unique<Metaspace>(field_or<std::string>(component, "replacement", "▁", here), scheme,
                                    field_or(component, "split", true, here)));
  } else {
    refuse_component(where, type);
  }
}

}  // namespace

PreTokenizerChain make_pre_tokenizer(const Json& component, bool model_reads_bytes) {
  PreTokenizerChain chain;
  if (component.is_null()) return chain;
  append(chain, component, "pre_tokenizer");
  if (model_reads_bytes && !chain.stages.empty() && dynamic_cast<ByteLevelMap*>(chain.stages.back().get())) {
    chain.stages.pop_back();
    chain.byte_level = true;
  }
  return chain;
}

std::unique_ptr<Pattern> make_pattern(const Json& pattern, const std::string& where) {
  try {
    if (pattern.is_object() && pattern.contains("String")) return literal_pattern(pattern["String"].get<std::string>());
    if (pattern.is_object() && pattern.contains("Regex")) return compile_pattern(pattern["Regex"].get<std::string>());
  } catch (const std::exception& error) {
    throw std::runtime_error(where + ": " + error.what());
  }
  throw std::runtime_error(where + ": expected {\"String\": ...} or {\"Regex\": ...} as its pattern, found " +
                           pattern.dump());
}

namespace {

struct ByteAlphabet {
  std::array<std::string, 256> chars;
  std::array<int, 324> bytes;
  ByteAlphabet() {
    bytes.fill(-1);
    uint32_t next = 256;  // bytes that do not print take the characters from U+0100 on
    for (int b = 0; b < 256; ++b) {
      const bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const uint32_t c = prints ? b : next++;
      append_utf8(chars[b], c);
      bytes[c] = b;
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet table;
  return table;
}

}  // namespace

const std::string& byte_to_char(unsigned char byte) { return alphabet().chars[byte]; }
int char_to_byte(uint32_t c) { return c < 324 ? alphabet().bytes[c] : -1; }

}  // namespace cairn::data
