// tokenizer.json (and what stands beside it) -> Tokenizer, and back.
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "checkpoints/gguf.h"
#include "trainer/data/tokenizer/gguf.h"
#include "trainer/data/tokenizer/state.h"

namespace cairn::data {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  std::ostringstream out;
  out << in.rdbuf();
  if (in.bad()) throw std::runtime_error(fmt::format("{}: cannot be read: {}", path.string(), std::strerror(errno)));
  return out.str();
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out) throw std::runtime_error(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
}

Json parse(const std::string& text, const std::string& origin) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw std::runtime_error(fmt::format("{}: is not valid JSON: {}", origin, error.what()));
  }
}

// `added_tokens`, with the ids that the official library gives: the model's where it has the token, otherwise the next
// free one, whatever the file says.
void read_added_tokens(const Json& list, Tokenizer::State& s) {
  if (list.is_null()) return;
  if (!list.is_array()) throw std::runtime_error("added_tokens: expected an array");
  int64_t highest = -1;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    AddedToken token;
    token.content = field<std::string>(list[i], "content", where);
    token.special = field_or(list[i], "special", false, where);
    token.single_word = field_or(list[i], "single_word", false, where);
    token.lstrip = field_or(list[i], "lstrip", false, where);
    token.rstrip = field_or(list[i], "rstrip", false, where);
    token.normalized = field_or(list[i], "normalized", !token.special, where);
    if (token.content.empty()) continue;
    if (const auto known = s.added_by_content.find(token.content); known != s.added_by_content.end()) {
      token.id = known->second->id;
    } else if (const auto id = s.model->token_to_id(token.content)) {
      token.id = *id;
    } else {
      token.id =
          static_cast<int32_t>(highest >= s.model->size() || s.model->size() == 0 ? highest + 1 : s.model->size());
    }
    highest = std::max<int64_t>(highest, token.id);
    s.added.push_back(std::make_unique<AddedToken>(std::move(token)));
    s.added_by_content[s.added.back()->content] = s.added.back().get();
    s.added_by_id[s.added.back()->id] = s.added.back().get();
  }
  // Of equal strings the special token counts, as it is put in first there.
  for (const bool special : {true, false})
    for (const auto& token : s.added) {
      if (token->special != special) continue;
      token->spelled = token->content;
      bool head = true;
      if (token->normalized && s.normalizer) s.normalizer->apply(token->spelled, head);
      (token->normalized ? s.normalized_tokens : s.raw_tokens).add(token->spelled, token.get());
      if (special) s.special_contents.insert(token->content);
    }
}

// A special token of tokenizer_config.json: its string, or an object with `content`.
std::optional<int32_t> configured_id(const Json& config, const char* key, const Tokenizer& tokenizer) {
  const auto at = config.find(key);
  if (at == config.end()) return std::nullopt;
  if (at->is_string()) return tokenizer.token_to_id(at->get<std::string>());
  if (at->is_object() && at->contains("content") && (*at)["content"].is_string())
    return tokenizer.token_to_id((*at)["content"].get<std::string>());
  return std::nullopt;
}

constexpr const char* kEosNames[] = {"<|endoftext|>", "</s>",       "<|end_of_text|>",       "<|eot_id|>",
                                     "<eos>",         "<|im_end|>", "<｜end▁of▁sentence｜>", "[EOS]"};
constexpr const char* kBosNames[] = {"<s>", "<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "[BOS]"};

void find_ends(const std::shared_ptr<Tokenizer::State>& s, const std::string& origin) {
  const Tokenizer tokenizer(s);
  const bool has_config = !s->config.empty();
  if (has_config) {
    const Json config = parse(s->config, origin);
    s->eos = configured_id(config, "eos_token", tokenizer);
    s->bos = configured_id(config, "bos_token", tokenizer);
  }
  for (const char* name : kEosNames)
    if (!s->eos) s->eos = tokenizer.token_to_id(name);
  if (!has_config)
    for (const char* name : kBosNames)
      if (!s->bos) s->bos = tokenizer.token_to_id(name);
}

// GPT-2's pair of files, which leave the rest to the program.
std::string json_of_pair(const fs::path& folder, const std::string& config_text) {
  bool add_prefix_space = false;
  if (!config_text.empty()) {
    const std::string origin = (folder / "tokenizer_config.json").string();
    const Json config = parse(config_text, origin);
    const std::string kind = config.value("tokenizer_class", "GPT2Tokenizer");
    if (kind != "GPT2Tokenizer" && kind != "GPT2TokenizerFast")
      throw std::runtime_error(
          fmt::format("{}: tokenizer_class is {}: of vocab.json and merges.txt only GPT2Tokenizer's are known; "
                      "tokenizer.json is needed",
                      origin, kind));
    add_prefix_space = config.value("add_prefix_space", false);
  }
  const std::string vocab_path = (folder / "vocab.json").string(), merges_path = (folder / "merges.txt").string();
  const Json vocab = parse(read_file(vocab_path), vocab_path);
  if (!vocab.is_object()) throw std::runtime_error(vocab_path + ": expected an object {token: id}");
  std::vector<std::string> tokens(vocab.size());
  for (auto at = vocab.begin(); at != vocab.end(); ++at) {
    if (!at.value().is_number_unsigned() || at.value().get<uint64_t>() >= tokens.size() ||
        !tokens[at.value().get<uint64_t>()].empty())
      throw std::runtime_error(fmt::format("{}: the id of '{}' is {}, expected each of 0 to {} once", vocab_path,
                                           at.key(), at.value().dump(), tokens.size() - 1));
    tokens[at.value().get<uint64_t>()] = at.key();
  }
  std::vector<std::pair<std::string, std::string>> merges;
  std::istringstream lines(read_file(merges_path));
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.starts_with("#version") || line.empty()) continue;
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
      throw std::runtime_error(
          fmt::format("{}: line {} is '{}', expected two tokens with one space between", merges_path, number, line));
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  std::vector<std::string> specials;
  if (vocab.contains("<|endoftext|>")) specials = {"<|endoftext|>"};
  return byte_level_json(tokens, merges, specials, kGpt2Pattern, add_prefix_space);
}

std::string read_if_there(const fs::path& path) { return fs::is_regular_file(path) ? read_file(path) : std::string(); }

}  // namespace

std::shared_ptr<Tokenizer::State> load_state(const std::string& text, const std::string& origin,
                                             const std::string& config) {
  static std::atomic<uint64_t> serial{0};
  auto s = std::make_shared<Tokenizer::State>();
  s->json = text;
  s->config = config;
  s->serial = ++serial;
  const Json json = parse(text, origin);
  try {
    if (!json.is_object() || !json.contains("model"))
      throw std::runtime_error("is not a tokenizer.json: 'model' is missing");
    const auto part = [&](const char* key) { return json.contains(key) ? json[key] : Json(); };
    s->normalizer = make_normalizer(part("normalizer"));
    s->pre_tokenizer = make_pre_tokenizer(part("pre_tokenizer"), model_reads_bytes(json["model"]));
    s->model = make_model(json["model"], s->pre_tokenizer.byte_level);
    s->surround = make_surround(part("post_processor"));
    s->decoder = make_decoder(part("decoder"));
    read_added_tokens(part("added_tokens"), *s);
    find_ends(s, "tokenizer_config.json");
  } catch (const std::exception& error) {
    throw std::runtime_error(origin + ": " + error.what());
  }
  return s;
}

std::shared_ptr<const Tokenizer> Tokenizer::from_json(const std::string& text, const std::string& origin) {
  return std::make_shared<const Tokenizer>(load_state(text, origin, ""));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_file(const std::string& path) {
  if (!fs::exists(path)) throw std::runtime_error(path + ": there is no such tokenizer file or folder");
  if (checkpoints::is_gguf(path)) {
    const GgufTokenizer made = gguf_tokenizer(checkpoints::Gguf::open(path));
    return std::make_shared<const Tokenizer>(load_state(made.json, path, made.config));
  }
  const bool folder = fs::is_directory(path);
  const fs::path file = folder ? fs::path(path) / "tokenizer.json" : fs::path(path);
  const std::string config = read_if_there(file.parent_path() / "tokenizer_config.json");
  if (folder && !fs::exists(file)) {
    if (!fs::exists(fs::path(path) / "vocab.json") || !fs::exists(fs::path(path) / "merges.txt"))
      throw std::runtime_error(path + ": holds neither tokenizer.json nor vocab.json and merges.txt");
    return std::make_shared<const Tokenizer>(
        load_state(json_of_pair(path, config), (fs::path(path) / "vocab.json").string(), config));
  }
  return std::make_shared<const Tokenizer>(load_state(read_file(file), file.string(), config));
}

std::shared_ptr<const Tokenizer> Tokenizer::bytes() {
  static const auto made = [] {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.push_back(byte_to_char(static_cast<unsigned char>(b)));
    tokens.push_back("<|endoftext|>");
    return std::make_shared<const Tokenizer>(
        load_state(byte_level_json(tokens, {}, {"<|endoftext|>"}, ""), "the tokenizer of bytes", ""));
  }();
  return made;
}

std::string byte_level_json(const std::vector<std::string>& tokens,
                            const std::vector<std::pair<std::string, std::string>>& merges,
                            const std::vector<std::string>& specials, const std::string& pattern,
                            bool add_prefix_space) {
  const auto byte_level = [](bool prefix, bool regex) {
    return OrderedJson{
        {"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", true}, {"use_regex", regex}};
  };
  OrderedJson vocab = OrderedJson::object();
  // NOTE: straight into the vector below: operator[] of an ordered object looks through all of it.
  auto& entries = vocab.get_ref<OrderedJson::object_t&>();
  for (size_t id = 0; id < tokens.size(); ++id) entries.push_back({tokens[id], id});
  OrderedJson added = OrderedJson::array();
  for (const std::string& special : specials) {
    const auto id = std::find(tokens.begin(), tokens.end(), special) - tokens.begin();
    added.push_back({{"id", id},
                     {"content", special},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  OrderedJson merge_list = OrderedJson::array();
  for (const auto& [left, right] : merges) merge_list.push_back(left + " " + right);
  OrderedJson pre = byte_level(add_prefix_space, pattern == kGpt2Pattern);
  if (!pattern.empty() && pattern != kGpt2Pattern) {
    const OrderedJson split = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
    pre = {{"type", "Sequence"}, {"pretokenizers", OrderedJson::array({split, byte_level(false, false)})}};
  }
  const OrderedJson json = {{"version", "1.0"},
                            {"truncation", nullptr},
                            {"padding", nullptr},
                            {"added_tokens", added},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", pre},
                            {"post_processor", byte_level(true, true)},
                            {"decoder", byte_level(true, true)},
                            {"model",
                             {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"continuing_subword_prefix", nullptr},
                              {"end_of_word_suffix", nullptr},
                              {"fuse_unk", false},
                              {"byte_fallback", false},
                              {"ignore_merges", false},
                              {"vocab", vocab},
                              {"merges", merge_list}}}};
  return json.dump(1) + "\n";
}

void Tokenizer::save(const std::string& folder) const {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw std::runtime_error(fmt::format("{}: the folder cannot be made: {}", folder, error.message()));
  write_file(fs::path(folder) / "tokenizer.json", state_->json);
  std::string config = state_->config;
  if (config.empty()) {
    OrderedJson made = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
    if (state_->bos) made["bos_token"] = id_to_token(*state_->bos);
    if (state_->eos) made["eos_token"] = id_to_token(*state_->eos);
    config = made.dump(2) + "\n";
  }
  write_file(fs::path(folder) / "tokenizer_config.json", config);
}

}  // namespace cairn::data
