#include "trainer/chat/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/chat/jinja/renderer.h"
#include "trainer/chat/jinja/text.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

ChatTemplateError::Reason reason_of(jinja::Fault fault) {
  switch (fault) {
    case jinja::Fault::syntax:
      return ChatTemplateError::syntax;
    case jinja::Fault::unsupported:
      return ChatTemplateError::unsupported;
    case jinja::Fault::raised:
      return ChatTemplateError::raised;
    case jinja::Fault::limit:
      return ChatTemplateError::limit;
    default:
      return ChatTemplateError::failed;
  }
}

ChatTemplateError translated(const jinja::Error& error, const std::string& origin) {
  return {reason_of(error.fault), origin, error.line, error.what()};
}

// NOTE: transformers drops what is null in a message before a template sees it.
Json without_nulls(const Json& message) {
  Json kept = Json::object();
  for (const auto& [key, value] : message.items())
    if (!value.is_null()) kept[key] = value;
  return kept;
}

// What a model thought goes by three names; a template may read any of them.
Json with_reasoning(const Json& message) {
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    if (!message.contains(name)) continue;
    const Json reasoning = message.at(name);
    Json out = Json::object();
    out["thinking"] = reasoning;
    for (const auto& [key, value] : message.items()) out[key] = value;
    out["reasoning_content"] = reasoning;
    return out;
  }
  return message;
}

constexpr std::string_view kMark = "CONTINUE_FINAL_MESSAGE_TAG ";

}  // namespace

struct ChatTemplate::State {
  struct One {
    std::string origin, source;
    jinja::Template tree;
  };
  std::map<std::string, One> templates;  // "default", "tool_use"
  std::map<std::string, std::string> special_tokens;

  void add(const std::string& name, const std::string& source, const std::string& origin) {
    One one{.origin = origin, .source = source, .tree = {}};
    try {
      one.tree = jinja::parse(source);
      jinja::place_variables(one.tree);
    } catch (const jinja::Error& error) {
      throw translated(error, origin);
    }
    templates.emplace(name, std::move(one));
  }
};

ChatTemplateError::ChatTemplateError(Reason reason, const std::string& origin, int line, const std::string& message)
    : std::runtime_error(line > 0 ? fmt::format("{}: line {}: {}", origin, line, message)
                                  : fmt::format("{}: {}", origin, message)),
      reason(reason),
      line(line),
      message(message) {}

ChatTemplate::ChatTemplate(const std::string& source, const std::string& origin,
                           std::map<std::string, std::string> special_tokens)
    : ChatTemplate({{"default", Source{source, origin}}}, std::move(special_tokens)) {}

ChatTemplate::ChatTemplate(const std::map<std::string, Source>& sources,
                           std::map<std::string, std::string> special_tokens) {
  auto state = std::make_shared<State>();
  for (const char* name : {"default", "tool_use"})
    if (const auto at = sources.find(name); at != sources.end()) state->add(name, at->second.text, at->second.origin);
  state->special_tokens = std::move(special_tokens);
  state_ = std::move(state);
}

bool ChatTemplate::has_generation() const {
  return std::all_of(state_->templates.begin(), state_->templates.end(),
                     [](const auto& named) { return named.second.tree.has_generation; });
}

bool ChatTemplate::reads_clock() const {
  return std::any_of(state_->templates.begin(), state_->templates.end(), [](const auto& named) {
    return named.second.source.find("strftime_now") != std::string::npos;
  });
}

RenderedChat ChatTemplate::render(const Json& messages, const ChatOptions& options) const {
  const auto tool_use = state_->templates.find("tool_use");
  const bool with_tools = !options.tools.is_null() && tool_use != state_->templates.end();
  const State::One& one = with_tools ? tool_use->second : state_->templates.at("default");
  const auto refuse = [&](const std::string& what) { return ChatTemplateError(ChatTemplateError::input, one.origin, 0, what); };

  if (!messages.is_array()) throw refuse("messages: expected a list");
  if (messages.empty()) throw refuse("Cannot apply chat template to an empty conversation. Provide at least one message.");
  if (!options.tools.is_null() && !options.tools.is_array()) throw refuse("tools: expected a list of JSON schemas");
  if (!options.tools.is_null())
    for (const Json& tool : options.tools)
      if (!tool.is_object()) throw refuse("tools: expected a list of JSON schemas, each an object");
  if (!options.variables.is_object()) throw refuse("variables: expected an object");
  if (options.continue_final_message && options.add_generation_prompt)
    throw refuse("continue_final_message and add_generation_prompt are not compatible");
  Json chat = Json::array();
  for (const Json& message : messages) {
    if (!message.is_object()) throw refuse(fmt::format("messages: expected objects, found {}", message.dump()));
    chat.push_back(with_reasoning(without_nulls(message)));
  }

  std::string continued;
  if (options.continue_final_message) {
    Json& last = chat.back();
    if (!last.contains("content"))
      throw refuse("continue_final_message is set but the final message has no \"content\" to continue!");
    if (one.source.find("content") == std::string::npos)
      throw refuse("continue_final_message is set to \"content\" but this is not an accepted field in the chat_template");
    Json* text = nullptr;
    if (last["content"].is_string()) text = &last["content"];
    if (last["content"].is_array()) {
      for (auto block = last["content"].rbegin(); block != last["content"].rend() && !text; ++block)
        if (block->is_object() && block->contains("text") && (*block)["text"].is_string()) text = &(*block)["text"];
    }
    if (!text) throw refuse("continue_final_message is set but we could not find any text to continue in the final message!");
    continued = text->get<std::string>();
    *text = continued + std::string(kMark);
  }

  RenderedChat out;
  try {
    std::vector<std::pair<std::string, jinja::Value>> variables;
    for (const auto& [key, value] : options.variables.items()) {
      for (const char* taken : {"messages", "tools", "add_generation_prompt"})
        if (key == taken) throw refuse(fmt::format("variables: '{}' is given otherwise", key));
      variables.emplace_back(key, jinja::from_json(value));
    }
    variables.emplace_back("messages", jinja::from_json(chat));
    variables.emplace_back("tools", jinja::from_json(options.tools));
    variables.emplace_back("add_generation_prompt", options.add_generation_prompt);
    variables.emplace_back("documents", nullptr);  // the first of a name counts
    for (const auto& [key, value] : state_->special_tokens) variables.emplace_back(key, value);
    const auto now = [&] { return options.now.value_or(std::chrono::system_clock::now()); };
    jinja::Rendered rendered = jinja::render(one.tree, variables, now);
    if (rendered.generated_unknown)
      throw ChatTemplateError(ChatTemplateError::unsupported, one.origin, 0,
                              "{% generation %} inside a macro, a set block or a filter block is not supported");
    out.text = std::move(rendered.text);
    out.assistant = std::move(rendered.generated);
  } catch (const jinja::Error& error) {
    throw translated(error, one.origin);
  }

  if (options.continue_final_message) {
    const std::string_view mark = kMark.substr(0, kMark.size() - 1);
    const size_t at = out.text.rfind(mark);
    if (at == std::string::npos || out.text.find(jinja::strip(continued)) == std::string::npos)
      throw refuse(
          "continue_final_message is set but the final message does not appear in the chat after applying the chat "
          "template! This can happen if the chat template deletes portions of the final message.");
    const bool kept_space = out.text.compare(at, kMark.size(), kMark) == 0;
    out.text.resize(at);
    if (!kept_space) out.text = std::string(jinja::strip(out.text, {}, jinja::Side::right));
    out.assistant.clear();
  }
  return out;
}

}  // namespace cairn
