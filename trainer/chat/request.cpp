#include "trainer/chat/request.h"

#include <fmt/format.h>

#include <istream>
#include <iterator>
#include <ostream>

#include "trainer/chat/chat_template.h"

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

class Requests {
 public:
  explicit Requests(const std::filesystem::path& folder) : folder_(folder) {}

  RenderedChat render(const Json& request) {
    Json messages = request;
    ChatOptions options;
    std::string own;
    if (request.is_object()) {
      if (!request.contains("messages")) refuse("'messages' is missing");
      for (const auto& [key, value] : request.items()) read(key, value, messages, options, own);
    } else if (!request.is_array()) {
      refuse("expected a list of messages, or an object with 'messages'");
    }
    if (!own.empty()) return ChatTemplate(own, "chat_template", special_tokens(folder_)).render(messages, options);
    if (!template_) template_ = ChatTemplate::from_folder(folder_);
    return template_->render(messages, options);
  }

 private:
  [[noreturn]] static void refuse(const std::string& what) {
    throw ChatTemplateError(ChatTemplateError::input, "the request", 0, what);
  }

  static bool flag(const std::string& key, const Json& value) {
    if (!value.is_boolean()) refuse(fmt::format("{}: found {}, expected true or false", key, value.dump()));
    return value.get<bool>();
  }

  static void read(const std::string& key, const Json& value, Json& messages, ChatOptions& options, std::string& own) {
    if (key == "messages") {
      messages = Json(value);
    } else if (key == "tools") {
      options.tools = value;
    } else if (key == "documents") {
      options.variables["documents"] = value;
    } else if (key == "add_generation_prompt") {
      options.add_generation_prompt = flag(key, value);
    } else if (key == "continue_final_message") {
      options.continue_final_message = flag(key, value);
    } else if (key == "chat_template") {
      if (!value.is_string()) refuse("chat_template: expected a text");
      own = value.get<std::string>();
    } else if (key == "variables") {
      if (!value.is_object()) refuse("variables: expected an object");
      options.variables.update(value);
    } else {
      refuse(fmt::format("unknown key '{}'", key));
    }
  }

  std::filesystem::path folder_;
  std::optional<ChatTemplate> template_;
};

const char* name_of(ChatTemplateError::Reason reason) {
  static constexpr const char* kNames[] = {"syntax", "unsupported", "raised", "failed", "limit", "input"};
  return kNames[reason];
}

Json parsed(const std::string& text) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw ChatTemplateError(ChatTemplateError::input, "the request", 0, fmt::format("not JSON: {}", error.what()));
  }
}

}  // namespace

int render_one(const std::filesystem::path& folder, std::istream& in, std::ostream& out) {
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  out << Requests(folder).render(parsed(text)).text;
  return 0;
}

int render_json_lines(const std::filesystem::path& folder, std::istream& in, std::ostream& out) {
  Requests requests(folder);
  int status = 0;
  for (std::string line; std::getline(in, line);) {
    Json answer;
    try {
      const RenderedChat chat = requests.render(parsed(line));
      Json spans = Json::array();
      for (const auto& [begin, end] : chat.assistant) spans.push_back(Json::array({begin, end}));
      answer = {{"text", chat.text}, {"assistant", std::move(spans)}};
    } catch (const ChatTemplateError& error) {
      answer["error"] = {{"reason", name_of(error.reason)}, {"line", error.line}, {"message", error.message}};
      status = 1;
    }
    out << answer.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
  return status;
}

}  // namespace cairn
