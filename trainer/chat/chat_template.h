// A model's chat template: messages in, the text that the model was trained on out, byte for byte what
// `tokenizer.apply_chat_template` of transformers 5 makes of them. Templates are Jinja (jinja2 3.1, immutable sandbox,
// trim_blocks, lstrip_blocks, break and continue, {% generation %}); what this engine lacks is refused by name, never
// rendered otherwise. A template comes with a model from anywhere: its steps, its depth and its texts are limited.
#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cairn {

// `what()` names the template, its line and what is wrong.
struct ChatTemplateError : std::runtime_error {
  enum Reason {
    syntax,       // not Jinja
    unsupported,  // Jinja beyond this engine
    raised,       // the template refuses the conversation: `message` is its own
    failed,       // rendering fails in Jinja too
    limit,        // too slow, too deep, too large
    input,        // the conversation is no list of messages
  };
  ChatTemplateError(Reason reason, const std::string& origin, int line, const std::string& message);
  Reason reason;
  int line;  // 0: none
  std::string message;
};

// A model folder without a chat template.
struct NoChatTemplate : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ChatOptions {
  nlohmann::ordered_json tools = nullptr;  // a list of JSON schemas; null: none
  bool add_generation_prompt = false;      // end with the head of the assistant's next message
  bool continue_final_message = false;     // end inside the last message, for the model to go on
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();  // more of them; they win over special tokens
  std::optional<std::chrono::system_clock::time_point> now;  // what strftime_now tells; default: the time
};

struct RenderedChat {
  std::string text;
  // Bytes [begin, end) of `text` that {% generation %} marks: what the assistant says, for assistant_only_loss.
  std::vector<std::pair<size_t, size_t>> assistant;
};

// Immutable; render() may run on any number of threads at once.
class ChatTemplate {
 public:
  // ORIGIN is what errors call it. SPECIAL_TOKENS: bos_token, eos_token ... Throws ChatTemplateError.
  ChatTemplate(const std::string& source, const std::string& origin, std::map<std::string, std::string> special_tokens = {});
  // Several by name: `tool_use` serves where tools are given, `default`, which must be there, otherwise.
  struct Source {
    std::string text, origin;
  };
  ChatTemplate(const std::map<std::string, Source>& sources, std::map<std::string, std::string> special_tokens);

  // As transformers finds it: chat_template.jinja and additional_chat_templates/NAME.jinja, else `chat_template` of
  // tokenizer_config.json, a text or a list of {name, template}. Throws NoChatTemplate where the folder has none,
  // std::runtime_error where a file is broken.
  static ChatTemplate from_folder(const std::filesystem::path& folder);

  // MESSAGES: a list of {"role", "content", ...}. As in transformers, keys whose value is null are left out, and
  // `reasoning_content`, `thinking` and `reasoning` stand for one another. Throws ChatTemplateError.
  RenderedChat render(const nlohmann::ordered_json& messages, const ChatOptions& options = {}) const;

  bool has_generation() const;  // {% generation %} is in every template
  bool reads_clock() const;     // the text may depend on the time of rendering

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

// bos_token, eos_token ... of a folder's tokenizer_config.json (and special_tokens_map.json, where that is older), as
// transformers gives them to a template.
std::map<std::string, std::string> special_tokens(const std::filesystem::path& folder);

}  // namespace cairn
