// The chat template and the special tokens of a model folder, where transformers looks for them.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "checkpoints/file.h"
#include "trainer/chat/chat_template.h"
#include "trainer/data/tokenizer/gguf.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Null where there is no such file.
Json read_json(const fs::path& path) {
  if (!fs::exists(path)) return nullptr;
  Json json = Json::parse(checkpoints::read_file(path), nullptr, false);
  if (!json.is_object()) throw std::runtime_error(fmt::format("{}: expected a JSON object", path.string()));
  return json;
}

using Source = ChatTemplate::Source;

// name -> template.
std::map<std::string, Source> sources_of(const fs::path& folder) {
  std::map<std::string, Source> found;
  if (checkpoints::is_gguf(folder)) {
    if (const auto text = data::gguf_chat_template(folder.string()))
      found["default"] = {*text, folder.string() + ": tokenizer.chat_template"};
    return found;
  }
  const fs::path file = folder / "chat_template.jinja", more = folder / "additional_chat_templates";
  if (fs::exists(file)) found["default"] = {checkpoints::read_file(file), file.string()};
  if (fs::is_directory(more))
    for (const auto& entry : fs::directory_iterator(more))
      if (entry.path().extension() == ".jinja")
        found[entry.path().stem().string()] = {checkpoints::read_file(entry.path()), entry.path().string()};
  if (!found.empty()) return found;

  const fs::path path = folder / "tokenizer_config.json";
  const Json config = read_json(path);
  if (!config.is_object() || !config.contains("chat_template") || config["chat_template"].is_null()) return found;
  const Json& stored = config["chat_template"];
  const std::string origin = path.string() + ": chat_template";
  const auto wrong = [&] {
    return std::runtime_error(fmt::format("{}: expected a text, or a list of {{\"name\", \"template\"}}", origin));
  };
  const auto add = [&](const std::string& name, const Json& text) {
    if (!text.is_string()) throw wrong();
    found[name] = {text.get<std::string>(), name == "default" ? origin : fmt::format("{}: {}", origin, name)};
  };
  if (stored.is_string()) {
    add("default", stored);
  } else if (stored.is_object()) {
    for (const auto& [name, text] : stored.items()) add(name, text);
  } else if (stored.is_array()) {
    for (const Json& one : stored) {
      if (!one.is_object() || !one.contains("name") || !one["name"].is_string() || !one.contains("template"))
        throw wrong();
      add(one["name"].get<std::string>(), one["template"]);
    }
  } else {
    throw wrong();
  }
  return found;
}

// A token as a config writes it: a text, or an object with `content`.
std::optional<std::string> token_text(const Json& token) {
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object() && token.contains("content") && token["content"].is_string())
    return token["content"].get<std::string>();
  return std::nullopt;
}

}  // namespace

std::map<std::string, std::string> special_tokens(const fs::path& folder) {
  Json config = checkpoints::is_gguf(folder) ? Json::parse(data::gguf_tokenizer(checkpoints::Gguf::open(folder)).config)
                                             : read_json(folder / "tokenizer_config.json");
  if (config.is_null()) config = Json::object();
  if (!config.contains("added_tokens_decoder")) {  // an older layout
    const Json map = read_json(folder / "special_tokens_map.json");
    if (map.is_object())
      for (const auto& [key, value] : map.items()) config[key] = value;
  }
  static constexpr std::string_view kNamed[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                "pad_token", "cls_token", "mask_token"};
  std::map<std::string, std::string> tokens;
  for (const auto& [key, value] : config.items()) {
    const bool named = std::find(std::begin(kNamed), std::end(kNamed), key) != std::end(kNamed);
    if (!key.ends_with("_token") || (!named && !value.is_string())) continue;
    if (const auto text = token_text(value)) tokens[key] = *text;
  }
  return tokens;
}

ChatTemplate ChatTemplate::from_folder(const fs::path& folder) {
  const auto sources = sources_of(folder);
  if (sources.empty())
    throw NoChatTemplate(fmt::format(
        "{}: the model has no chat template (chat_template.jinja, chat_template in tokenizer_config.json, or "
        "tokenizer.chat_template of a GGUF file)",
        folder.string()));
  if (!sources.count("default")) {
    std::string names;
    for (const auto& [name, source] : sources) names += (names.empty() ? "" : ", ") + name;
    throw std::runtime_error(
        fmt::format("{}: the model has several chat templates ({}), none of them 'default'", folder.string(), names));
  }
  return {sources, special_tokens(folder)};
}

}  // namespace cairn
