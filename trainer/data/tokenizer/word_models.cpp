// WordLevel: a token a piece. WordPiece (BERT): the longest token that a piece begins with, again and again.
#include "trainer/data/tokenizer/model.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

class WordModel : public Model {
 protected:
  WordModel(const Json& component, const std::string& where, const char* default_unknown) : where_(where) {
    if (!component.contains("vocab")) throw std::runtime_error(where + ": 'vocab' is missing");
    read_vocab(component["vocab"], where);
    unknown_name_ = field_or<std::string>(component, "unk_token", default_unknown, where);
  }
  int32_t unknown(std::string_view piece) const {
    if (const auto id = token_to_id(unknown_name_)) return *id;
    throw std::runtime_error(
        fmt::format("{}: '{}' needs the unknown token '{}', which the vocabulary lacks", where_, piece, unknown_name_));
  }

 private:
  std::string where_, unknown_name_;
};

class WordLevel : public WordModel {
 public:
  explicit WordLevel(const Json& component) : WordModel(component, "model WordLevel", "<unk>") {}
  void encode(std::string_view piece, WordCache&, std::vector<int32_t>& out) const override {
    const auto id = token_to_id(piece);
    if (id) {
      out.push_back(*id);
    } else {
      out.push_back(unknown(piece));
    }
  }
};

class WordPiece : public WordModel {
 public:
  explicit WordPiece(const Json& component) : WordModel(component, "model WordPiece", "[UNK]") {
    prefix_ = field_or<std::string>(component, "continuing_subword_prefix", "##", "model WordPiece");
    max_chars_ = field_or<int64_t>(component, "max_input_chars_per_word", 100, "model WordPiece");
  }
  void encode(std::string_view piece, WordCache&, std::vector<int32_t>& out) const override {
    int64_t chars = 0;
    for_each_char(piece, [&](uint32_t, std::string_view) { ++chars; });
    if (chars > max_chars_) return out.push_back(unknown(piece));
    const size_t kept = out.size();
    for (size_t begin = 0; begin < piece.size();) {
      size_t end = piece.size();
      std::optional<int32_t> id;
      while (begin < end &&
             !(id = token_to_id((begin == 0 ? "" : prefix_) + std::string(piece.substr(begin, end - begin))))) {
        do --end;
        while (end > begin && (static_cast<unsigned char>(piece[end]) & 0xC0) == 0x80);
      }
      if (!id) {  // one part unknown: the whole piece is
        out.resize(kept);
        return out.push_back(unknown(piece));
      }
      out.push_back(*id);
      begin = end;
    }
  }

 private:
  std::string prefix_;
  int64_t max_chars_;
};

}  // namespace

std::unique_ptr<Model> make_word_level(const Json& component) { return std::make_unique<WordLevel>(component); }
std::unique_ptr<Model> make_word_piece(const Json& component) { return std::make_unique<WordPiece>(component); }

}  // namespace cairn::data
