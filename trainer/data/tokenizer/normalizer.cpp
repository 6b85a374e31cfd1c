#include "trainer/data/tokenizer/normalizer.h"

#include <functional>
#include <vector>

#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(std::string& text, bool& head) const override {
    for (const auto& part : parts_) part->apply(text, head);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

class Form : public Normalizer {
 public:
  explicit Form(NormalForm form) : form_(form) {}
  void apply(std::string& text, bool&) const override {
    if (!is_ascii(text)) text = normalize(text, form_);
  }

 private:
  NormalForm form_;
};

// Each character becomes what FN appends for it.
class PerChar : public Normalizer {
 public:
  using Fn = std::function<void(std::string& out, uint32_t c, std::string_view bytes)>;
  explicit PerChar(Fn fn) : fn_(std::move(fn)) {}
  void apply(std::string& text, bool& head) const override {
    std::string out;
    out.reserve(text.size());
    for_each_char(text, [&](uint32_t c, std::string_view bytes) {
      const bool first = bytes.data() == text.data();
      fn_(out, c, bytes);
      if (first && out.empty()) head = false;
    });
    text = std::move(out);
  }

 private:
  Fn fn_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text, bool&) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(std::unique_ptr<Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::string& text, bool& head) const override {
    Matches matches(*pattern_, text);
    Match m;
    if (!matches.next(m)) return;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    const size_t first_length = text.empty() ? 0 : utf8_length(static_cast<unsigned char>(text[0]));
    size_t previous = 0;
    do {
      out.append(text, previous, m.begin - previous);
      out += content_;
      // What replaces several characters stands where the last of them stood.
      if (m.begin == 0 && m.end > 0 && (content_.empty() || m.end > first_length)) head = false;
      previous = m.end;
    } while (matches.next(m));
    out.append(text, previous);
    text = std::move(out);
  }

 private:
  std::unique_ptr<Pattern> pattern_;
  std::string content_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text, bool& head) const override {
    size_t begin = 0, end = text.size();
    int length;
    if (left_)
      while (begin < end && (char_class(bmp_, decode_utf8(text.data() + begin, length)) & kSpace)) begin += length;
    if (right_)
      while (end > begin) {
        const uint32_t c = last_code_point(std::string_view(text).substr(begin, end - begin));
        if (!(char_class(bmp_, c) & kSpace)) break;
        do --end;
        while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
      }
    if (begin > 0) head = false;
    text = text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
  const uint16_t* bmp_ = bmp_classes();
};

void lowercase(std::string& out, uint32_t c, std::string_view) { append_lowercase(out, c); }

void strip_accents(std::string& out, uint32_t c, std::string_view bytes) {
  if (!is_combining_mark(c)) out += bytes;
}

// SentencePiece's nmt rules: controls go, odd spaces become spaces.
void nmt(std::string& out, uint32_t c, std::string_view bytes) {
  const bool control = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
  if (control) return;
  const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
  if (space) {
    out += ' ';
  } else {
    out += bytes;
  }
}

void bert_clean(std::string& out, uint32_t c, std::string_view bytes) {
  const bool plain_space = c == '\t' || c == '\n' || c == '\r';
  if (c == 0 || c == 0xFFFD || (!plain_space && is_other(c))) return;
  if (char_class(bmp_classes(), c) & kSpace) {
    out += ' ';
  } else {
    out += bytes;
  }
}

void space_around_chinese(std::string& out, uint32_t c, std::string_view bytes) {
  static constexpr uint32_t kBlocks[][2] = {{0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF},
                                            {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF},
                                            {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  for (const auto& block : kBlocks)
    if (c >= block[0] && c <= block[1]) {
      out += ' ';
      out += bytes;
      out += ' ';
      return;
    }
  out += bytes;
}

// BERT's: decomposed, without the non-spacing marks.
class DropAccents : public Normalizer {
 public:
  void apply(std::string& text, bool& head) const override {
    if (is_ascii(text)) return;
    const auto first = std::string_view(text).substr(0, utf8_length(static_cast<unsigned char>(text[0])));
    if (without_marks(normalize(first, NormalForm::kNfd)).empty()) head = false;
    text = without_marks(normalize(text, NormalForm::kNfd));
  }

 private:
  static std::string without_marks(const std::string& text) {
    std::string out;
    for_each_char(text, [&](uint32_t c, std::string_view bytes) {
      if (!is_nonspacing_mark(c)) out += bytes;
    });
    return out;
  }
};

void byte_level(std::string& out, uint32_t, std::string_view bytes) {
  for (const char b : bytes) out += byte_to_char(static_cast<unsigned char>(b));
}

std::unique_ptr<Normalizer> make_bert(const Json& component, const std::string& here) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  const bool lower = field_or(component, "lowercase", true, here);
  if (field_or(component, "clean_text", true, here)) parts.push_back(std::make_unique<PerChar>(bert_clean));
  if (field_or(component, "handle_chinese_chars", true, here))
    parts.push_back(std::make_unique<PerChar>(space_around_chinese));
  if (field_or(component, "strip_accents", lower, here)) parts.push_back(std::make_unique<DropAccents>());
  if (lower) parts.push_back(std::make_unique<PerChar>(lowercase));
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const Json& component, const std::string& where) {
  if (component.is_null()) return nullptr;
  const std::string type = component_type(component, where);
  const std::string here = where + " " + type;
  static const struct {
    const char* name;
    NormalForm form;
  } kForms[] = {
      {"NFC", NormalForm::kNfc}, {"NFD", NormalForm::kNfd}, {"NFKC", NormalForm::kNfkc}, {"NFKD", NormalForm::kNfkd}};
  for (const auto& row : kForms)
    if (type == row.name) return std::make_unique<Form>(row.form);
  static const struct {
    const char* name;
    void (*fn)(std::string&, uint32_t, std::string_view);
  } kPerChar[] = {{"Lowercase", lowercase}, {"StripAccents", strip_accents}, {"Nmt", nmt}, {"ByteLevel", byte_level}};
  for (const auto& row : kPerChar)
    if (type == row.name) return std::make_unique<PerChar>(row.fn);
  if (type == "Sequence") {
    const Json list = field<Json>(component, "normalizers", here);
    std::vector<std::unique_ptr<Normalizer>> parts;
    for (size_t i = 0; i < list.size(); ++i)
      if (auto part = make_normalizer(list[i], fmt::format("{}[{}]", where, i))) parts.push_back(std::move(part));
    if (parts.empty()) return nullptr;
    return std::make_unique<Sequence>(std::move(parts));
  }
  if (type == "Prepend") return std::make_unique<Prepend>(field<std::string>(component, "prepend", here));
  if (type == "Replace")
    return std::make_unique<Replace>(make_pattern(field<Json>(component, "pattern", here), here),
                                     field<std::string>(component, "content", here));
  if (type == "Strip")
    return std::make_unique<Strip>(field_or(component, "strip_left", true, here),
                                   field_or(component, "strip_right", true, here));
  if (type == "BertNormalizer") return make_bert(component, here);
  if (type == "Precompiled") {
    const std::string map = field_or<std::string>(component, "precompiled_charsmap", "", here);
    if (map.empty()) return nullptr;
    return make_precompiled(map, here);
  }
  refuse_component(where, type);
}

}  // namespace cairn::data
