// What a name in tokenizer.ggml.pre stands for: llama.cpp's src/llama-vocab.cpp, and the tokenizer.json of the models
// that each name came from, where the two say it differently.
#include "trainer/data/tokenizer/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

#include "checkpoints/strict_json.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {

using checkpoints::Gguf;
using checkpoints::GgufValue;
using Json = nlohmann::ordered_json;

// tokenizer.ggml.token_type
enum class Kind : int64_t { normal = 1, unknown, control, user_defined, unused, byte };

#define CL100K(digits)                                               \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" digits \
  R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define O200K_UP R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define O200K_LOW R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define O200K(ending, digits)                                                                                          \
  R"([^\r\n\p{L}\p{N}]?)" O200K_UP "*" O200K_LOW "+" ending R"(|[^\r\n\p{L}\p{N}]?)" O200K_UP "+" O200K_LOW "*" ending \
  "|" digits R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"

const std::string kCl100k = CL100K(R"(\p{N}{1,3})"), kQwen2 = CL100K(R"(\p{N})");
const char* const kDigit = R"(\p{N})";
const char* const kDeepseekCjk = "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+";
// Letters that have a case, as far as DeepSeek's first tokenizer knew them.
const char* const kCasedLetters =
    "\\s?[A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373"
    "\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F"
    "\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77"
    "\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-"
    "\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC"
    "\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-"
    "\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3"
    "\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17"
    "\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-"
    "\U00010CB2\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943]+";

struct Pre {
  std::vector<const char*> names;
  std::vector<std::string> patterns;  // each cuts the pieces that the one before it left
  const char* normalizer = nullptr;
  bool whole_words = false;  // a piece that is a token stays whole (ignore_merges)
  bool bos = false;          // put before a text where the file does not say
};

const std::vector<Pre>& pre_tokenizers() {
  static const std::vector<Pre> table = {
      {{"gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "roberta-bpe", "jais", "exaone4"},
       {kGpt2Pattern}},
      {{"olmo", "mpt"}, {kGpt2Pattern}, "NFC"},
      {{"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"}, {kCl100k}, nullptr, true, true},
      {{"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"}, {kCl100k}},
      {{"qwen2", "deepseek-r1-qwen"}, {kQwen2}, "NFC"},
      {{"stablelm2"}, {kQwen2}},
      {{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}, {kDigit, kGpt2Pattern}},
      {{"deepseek-llm"},
       {"[\r\n]", kCasedLetters, "\\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+", "\\s+$",
        kDeepseekCjk, kDigit}},
      {{"deepseek-coder"}, {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", kDeepseekCjk, kDigit}},
      {{"deepseek-v3"},
       {R"(\p{N}{1,3})", "[一-龥\u3040-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}},
      {{"tekken"}, {O200K("", R"(\p{N})")}, nullptr, true, true},
      {{"gpt-4o", "llama4"}, {O200K("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", R"(\p{N}{1,3})")}},
      {{"falcon"}, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", kGpt2Pattern, "[0-9][0-9][0-9]"}},
      {{"default"}, {"[\\p{P}\\$\\+<=>\\^~\\|]+", kGpt2Pattern, "\\p{N}+", "[0-9][0-9][0-9]"}},
  };
  return table;
}

class Builder {
 public:
  explicit Builder(const Gguf& file) : file_(file) {}

  GgufTokenizer build() {
    const std::string model = file_.at("tokenizer.ggml.model").text();
    GgufTokenizer made;
    if (const GgufValue* whole = file_.find("tokenizer.huggingface.json")) {
      read_tokens();
      made.json = whole->text();
    } else {
      const auto kind =
          std::find_if(std::begin(kModels), std::end(kModels), [&](const auto& row) { return model == row.name; });
      if (kind == std::end(kModels)) {
        fail("tokenizer.ggml.model",
             fmt::format("'{}' is not supported; there are gpt2 (byte-level BPE) and llama (SentencePiece's BPE)",
                         model));
      }
      read_tokens();
      made.json = ((this->*kind->build)()).dump() + "\n";
    }
    if (const GgufValue* chat = file_.find("tokenizer.chat_template")) made.chat_template = chat->text();
    made.config = config(made.chat_template).dump(2) + "\n";
    return made;
  }

 private:
  struct Model {
    const char* name;
    Json (Builder::*build)();
  };
  static const Model kModels[2];

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw std::runtime_error(fmt::format("{}: {}: {}", file_.path().string(), key, what));
  }

  void read_tokens() {
    constexpr const char* kTokens = "tokenizer.ggml.tokens";
    tokens_ = file_.at(kTokens).texts();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (tokens_[id].empty()) tokens_[id] = fmt::format("[EMPTY_{}]", id);  // as llama.cpp calls them
      if (checkpoints::utf8_error(tokens_[id]) < tokens_[id].size())
        fail(kTokens, fmt::format("token {} is not UTF-8", id));
      if (!ids_.emplace(tokens_[id], static_cast<int64_t>(id)).second)
        fail(kTokens, fmt::format("token {} is '{}', as token {} is", id, tokens_[id], ids_.at(tokens_[id])));
    }
    kinds_.assign(tokens_.size(), Kind::normal);
    if (const GgufValue* types = file_.find("tokenizer.ggml.token_type")) {
      const auto all = types->integers();
      same_size("tokenizer.ggml.token_type", all.size());
      for (size_t id = 0; id < all.size(); ++id) kinds_[id] = static_cast<Kind>(all[id]);
    }
  }

  void same_size(const char* key, size_t size) const {
    if (size != tokens_.size()) fail(key, fmt::format("has {} entries for {} tokens", size, tokens_.size()));
  }

  bool flag(const char* name, bool otherwise) const {
    const GgufValue* value = file_.find(fmt::format("tokenizer.ggml.{}", name));
    return value ? value->boolean() : otherwise;
  }

  // The id of a role, checked.
  std::optional<int64_t> id_of(const char* role) const {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", role);
    const GgufValue* value = file_.find(key);
    if (!value) return std::nullopt;
    const int64_t id = value->integer();
    if (id < 0 || id >= static_cast<int64_t>(tokens_.size()))
      fail(key, fmt::format("found {}, expected an id below {}", id, tokens_.size()));
    return id;
  }

  Json vocab() const {
    Json object = Json::object();
    // NOTE: straight into the vector below: operator[] of an ordered object looks through all of it.
    auto& entries = object.get_ref<Json::object_t&>();
    for (size_t id = 0; id < tokens_.size(); ++id) entries.push_back({tokens_[id], id});
    return object;
  }

  // What llama.cpp looks for in a text before the model sees it.
  Json added_tokens() const {
    Json added = Json::array();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const Kind kind = kinds_[id];
      if (kind != Kind::control && kind != Kind::unknown && kind != Kind::user_defined) continue;
      added.push_back({{"id", id},
                       {"content", tokens_[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", kind != Kind::user_defined}});
    }
    return added;
  }

  // bos and eos around a text, as the file asks; `bos`: where it does not say.
  Json post_processor(bool bos) const {
    Json single = Json::array(), pair = Json::array(), specials = Json::object();
    const auto put = [&](const char* role, bool wanted) {
      if (!wanted) return;
      const auto id = id_of(role);
      if (!id) fail(fmt::format("tokenizer.ggml.add_{}_token", role), "is true, but there is no such token");
      const std::string& token = tokens_[*id];
      const Json part = {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
      single.push_back(part), pair.push_back(part);
      specials[token] = {{"id", token}, {"ids", {*id}}, {"tokens", {token}}};
    };
    const auto sequence = [](const char* name) { return Json{{"Sequence", {{"id", name}, {"type_id", 0}}}}; };
    put("bos", flag("add_bos_token", bos && id_of("bos")));
    single.push_back(sequence("A")), pair.push_back(sequence("A")), pair.push_back(sequence("B"));
    put("eos", flag("add_eos_token", false));
    if (single.size() == 1) return nullptr;
    return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
  }

  Json whole(const Json& normalizer, const Json& pre, const Json& post, const Json& decoder, const Json& model) const {
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", added_tokens()},
            {"normalizer", normalizer},
            {"pre_tokenizer", pre},
            {"post_processor", post},
            {"decoder", decoder},
            {"model", model}};
  }

  Json byte_level() {
    constexpr const char* kKey = "tokenizer.ggml.pre";
    const GgufValue* given = file_.find(kKey);
    if (!given)
      fail(kKey, "is missing: how a text is cut is not known (the file is older than May 2024; convert anew)");
    const std::string name = given->text();
    const auto& table = pre_tokenizers();
    const auto pre = std::find_if(table.begin(), table.end(), [&](const Pre& p) {
      return std::find(p.names.begin(), p.names.end(), name) != p.names.end();
    });
    if (pre == table.end()) {
      std::vector<std::string> known;
      for (const Pre& p : table) known.insert(known.end(), p.names.begin(), p.names.end());
      std::sort(known.begin(), known.end());
      fail(kKey, fmt::format("'{}' is not supported; there are {}", name, fmt::join(known, ", ")));
    }
    Json parts = Json::array();
    for (const std::string& pattern : pre->patterns)
      parts.push_back(
          {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
    const Json level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    const bool prefix = flag("add_space_prefix", false);
    parts.push_back(level);
    Json normalizer = pre->normalizer ? Json{{"type", pre->normalizer}} : Json(nullptr);
    if (prefix) fail("tokenizer.ggml.add_space_prefix", "true is not supported with byte-level BPE");
    const Json model = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", pre->whole_words},
                        {"vocab", vocab()},
                        {"merges", file_merges()}};
    return whole(normalizer, {{"type", "Sequence"}, {"pretokenizers", parts}}, post_processor(pre->bos), level, model);
  }

  // "left right"; stand-ins of bytes hold no space.
  Json file_merges() const {
    constexpr const char* kKey = "tokenizer.ggml.merges";
    Json merges = Json::array();
    for (const std::string& merge : file_.at(kKey).texts()) {
      const size_t space = merge.find(' ', 1);
      if (space == std::string::npos || checkpoints::utf8_error(merge) < merge.size())
        fail(kKey, fmt::format("merge {} is '{}', expected two tokens with one space between", merges.size(), merge));
      merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
    }
    return merges;
  }

  // SentencePiece joins the neighbours whose joint token has the best score; as merges: every way to make a token of
  // two others, best score first.
  Json scored_merges() const {
    constexpr const char* kKey = "tokenizer.ggml.scores";
    const auto scores = file_.at(kKey).numbers();
    same_size(kKey, scores.size());
    struct Merge {
      double score;
      int64_t token, left, right;
    };
    std::vector<Merge> merges;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (kinds_[id] != Kind::normal) continue;
      const std::string& token = tokens_[id];
      for (size_t cut = 1; cut < token.size(); ++cut) {
        if ((static_cast<unsigned char>(token[cut]) & 0xC0) == 0x80) continue;
        const auto left = ids_.find(token.substr(0, cut)), right = ids_.find(token.substr(cut));
        if (left != ids_.end() && right != ids_.end())
          merges.push_back({scores[id], static_cast<int64_t>(id), left->second, right->second});
      }
    }
    std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
      if (a.score != b.score) return a.score > b.score;
      return std::tie(a.token, a.left, a.right) < std::tie(b.token, b.left, b.right);
    });
    Json list = Json::array();
    for (const Merge& merge : merges) list.push_back({tokens_[merge.left], tokens_[merge.right]});
    return list;
  }

  Json sentence_piece() {
    const Json to_space = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
    const Json from_space = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
    const bool prefix = flag("add_space_prefix", true);
    Json normalizer = from_space;
    Json decoders = {to_space, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
    if (prefix) {
      normalizer = {{"type", "Sequence"},
                    {"normalizers", Json::array({{{"type", "Prepend"}, {"prepend", "▁"}}, from_space})}};
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    const auto unknown = id_of("unknown");
    const Json model = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", unknown ? Json(tokens_[*unknown]) : Json(nullptr)},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", true},
                        {"byte_fallback", true},
                        {"ignore_merges", false},
                        {"vocab", vocab()},
                        {"merges", scored_merges()}};
    return whole(normalizer, nullptr, post_processor(true), {{"type", "Sequence"}, {"decoders", decoders}}, model);
  }

  Json config(const std::optional<std::string>& chat_template) const {
    Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
    constexpr std::pair<const char*, const char*> kRoles[] = {
        {"bos", "bos_token"}, {"eos", "eos_token"}, {"unknown", "unk_token"}, {"padding", "pad_token"}};
    for (const auto& [role, key] : kRoles)
      if (const auto id = id_of(role)) json[key] = tokens_[*id];
    if (chat_template) {
      if (checkpoints::utf8_error(*chat_template) < chat_template->size())
        fail("tokenizer.chat_template", "is not UTF-8");
      json["chat_template"] = *chat_template;
    }
    return json;
  }

  const Gguf& file_;
  std::vector<std::string> tokens_;
  std::vector<Kind> kinds_;
  std::unordered_map<std::string, int64_t> ids_;
};

const Builder::Model Builder::kModels[2] = {{"gpt2", &Builder::byte_level}, {"llama", &Builder::sentence_piece}};

}  // namespace

bool has_gguf_tokenizer(const Gguf& file) {
  const GgufValue* model = file.find("tokenizer.ggml.model");
  return model && model->text() != "none" && model->text() != "no_vocab";
}

GgufTokenizer gguf_tokenizer(const Gguf& file) { return Builder(file).build(); }

std::optional<std::string> gguf_chat_template(const std::string& path) {
  const Gguf file = Gguf::open(path);
  const GgufValue* value = file.find("tokenizer.chat_template");
  return value ? std::optional(value->text()) : std::nullopt;
}

}  // namespace cairn::data
