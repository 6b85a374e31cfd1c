#include "trainer/data/tokenizer/decoder.h"

#include <cctype>

#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

using Tokens = std::vector<std::string>;

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> parts) : parts_(std::move(parts)) {}
  void apply(Tokens& tokens) const override {
    for (const auto& part : parts_) part->apply(tokens);
  }
  void apply_raw(Tokens& tokens) const override {
    for (const auto& part : parts_) part->apply_raw(tokens);
  }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

// The bytes that the characters stand for; a token with another character is its own UTF-8.
class ByteLevel : public Decoder {
 public:
  void apply(Tokens& tokens) const override {
    apply_raw(tokens);
    tokens = {replace_invalid_utf8(tokens.at(0))};
  }
  void apply_raw(Tokens& tokens) const override {
    std::string bytes;
    for (const std::string& token : tokens) {
      const size_t begin = bytes.size();
      bool spelled = true;
      for_each_char(token, [&](uint32_t c, std::string_view) {
        const int byte = char_to_byte(c);
        if (byte < 0) spelled = false;
        bytes += static_cast<char>(byte);
      });
      if (!spelled) {
        bytes.resize(begin);
        bytes += token;
      }
    }
    tokens = {std::move(bytes)};
  }
};

// Runs of <0xNN>: their bytes where they are UTF-8, otherwise U+FFFD for each.
class ByteFallback : public Decoder {
 public:
  void apply(Tokens& tokens) const override { put_together(tokens, false); }
  void apply_raw(Tokens& tokens) const override { put_together(tokens, true); }

 private:
  static void put_together(Tokens& tokens, bool raw) {
    Tokens out;
    std::string run;
    const auto flush = [&] {
      if (run.empty()) return;
      if (raw || valid_utf8_prefix(run) == run.size()) {
        out.push_back(run);
      } else {
        for (size_t i = 0; i < run.size(); ++i) out.push_back("\xEF\xBF\xBD");
      }
      run.clear();
    };
    for (std::string& token : tokens) {
      const int byte = byte_of(token);
      if (byte >= 0) {
        run += static_cast<char>(byte);
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    tokens = std::move(out);
  }

  static int byte_of(const std::string& token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
    if (!std::isxdigit(static_cast<unsigned char>(token[4]))) return -1;
    // NOTE: Rust's from_str_radix takes a sign, so <0x+A> is the byte 10 there and here.
    if (token[3] == '+') return std::stoi(token.substr(4, 1), nullptr, 16);
    if (!std::isxdigit(static_cast<unsigned char>(token[3]))) return -1;
    return std::stoi(token.substr(3, 2), nullptr, 16);
  }
};

class Fuse : public Decoder {
 public:
  void apply(Tokens& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens = {std::move(all)};
  }
};

class Replace : public Decoder {
 public:
  Replace(std::unique_ptr<Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(Tokens& tokens) const override {
    for (std::string& token : tokens) {
      if (valid_utf8_prefix(token) != token.size()) continue;  // raw: patterns are of characters
      std::string out;
      size_t previous = 0;
      Matches matches(*pattern_, token);
      for (Match m; matches.next(m); previous = m.end) {
        out.append(token, previous, m.begin - previous);
        out += content_;
      }
      out.append(token, previous);
      token = std::move(out);
    }
  }

 private:
  std::unique_ptr<Pattern> pattern_;
  std::string content_;
};

class Strip : public Decoder {
 public:
  Strip(std::string content, int64_t start, int64_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(Tokens& tokens) const override {
    for (std::string& token : tokens) {
      size_t begin = 0, end = token.size();
      for (int64_t i = 0; i < start_ && token.compare(begin, content_.size(), content_) == 0 && begin < end; ++i)
        begin += content_.size();
      for (int64_t i = 0; i < stop_ && end >= begin + content_.size() &&
                          token.compare(end - content_.size(), content_.size(), content_) == 0;
           ++i)
        end -= content_.size();
      token = token.substr(begin, end - begin);
    }
  }

 private:
  std::string content_;
  int64_t start_, stop_;
};

class Metaspace : public Decoder {
 public:
  Metaspace(std::string replacement, bool drop_first) : replacement_(std::move(replacement)), drop_first_(drop_first) {}
  void apply(Tokens& tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      std::string out;
      for_each_char(tokens[i], [&](uint32_t, std::string_view bytes) {
        if (bytes != replacement_) {
          out += bytes;
        } else if (i != 0 || !drop_first_) {
          out += ' ';
        }
      });
      tokens[i] = std::move(out);
    }
  }

 private:
  std::string replacement_;
  bool drop_first_;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

class WordPiece : public Decoder {
 public:
  WordPiece(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(Tokens& tokens) const override {
    static constexpr std::pair<std::string_view, std::string_view> kCleanup[] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i != 0) {
        if (!prefix_.empty() && tokens[i].starts_with(prefix_)) {
          tokens[i].erase(0, prefix_.size());
        } else {
          tokens[i].insert(0, " ");
        }
      }
      if (cleanup_)
        for (const auto& [from, to] : kCleanup) replace_all(tokens[i], from, to);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

// End-of-word suffixes become spaces, the last one goes.
class BpeDecoder : public Decoder {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(Tokens& tokens) const override {
    if (suffix_.empty()) return;
    for (size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const Json& component, const std::string& where) {
  if (component.is_null()) return nullptr;
  const std::string type = component_type(component, where);
  const std::string here = where + " " + type;
  if (type == "Sequence") {
    const Json list = field<Json>(component, "decoders", here);
    std::vector<std::unique_ptr<Decoder>> parts;
    for (size_t i = 0; i < list.size(); ++i) parts.push_back(make_decoder(list[i], fmt::format("{}[{}]", where, i)));
    return std::make_unique<Sequence>(std::move(parts));
  }
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "ByteFallback") return std::make_unique<ByteFallback>();
  if (type == "Fuse") return std::make_unique<Fuse>();
  if (type == "Replace")
    return std::make_unique<Replace>(make_pattern(field<Json>(component, "pattern", here), here),
                                     field<std::string>(component, "content", here));
  if (type == "Strip")
    return std::make_unique<Strip>(field<std::string>(component, "content", here),
                                   field_or<int64_t>(component, "start", 0, here),
                                   field_or<int64_t>(component, "stop", 0, here));
  if (type == "Metaspace") {
    const bool prefix = field_or(component, "add_prefix_space", true, here);
    const auto scheme = field_or<std::string>(component, "prepend_scheme", prefix ? "always" : "never", here);
    return std::make_unique<Metaspace>(field_or<std::string>(component, "replacement", "▁", here), scheme != "never");
  }
  if (type == "WordPiece")
    return std::make_unique<WordPiece>(field_or<std::string>(component, "prefix", "##", here),
                                       field_or(component, "cleanup", true, here));
  if (type == "BPEDecoder")
    return std::make_unique<BpeDecoder>(field_or<std::string>(component, "suffix", "</w>", here));
  refuse_component(where, type);
}

}  // namespace cairn::data
