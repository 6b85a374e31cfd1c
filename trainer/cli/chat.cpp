// `cairn chat`: a conversation through the model's own chat template, or, with --plain, a text that grows.
#include <iostream>

#include "trainer/address.h"
#include "trainer/chat/chat_template.h"
#include "trainer/chat/request.h"
#include "trainer/cli/cli.h"
#include "trainer/cli/sampler.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options : SamplerOptions {
  std::string system, prompt;
  bool json = false, plain = false, render = false;
};

std::string dumped(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A message in a few words.
std::string shortened(const Json& message) {
  const std::string text = message.at("content").get<std::string>();
  return fmt::format("{}: '{}{}'", message.at("role").get<std::string>(),
                     data::replace_invalid_utf8(text.substr(0, 40)), text.size() > 40 ? "..." : "");
}

class Conversation {
 public:
  Conversation(const Sampler& sampler, const ChatTemplate& chat_template, const Options& o)
      : sampler_(sampler), template_(chat_template), generator_(*sampler.model, *sampler.tokenizer), json_(o.json) {
    if (!o.system.empty()) messages_.push_back({{"role", "system"}, {"content", o.system}});
  }

  // The answer to LINE, shown as it comes; both become part of the conversation.
  void turn(const std::string& line) {
    messages_.push_back({{"role", "user"}, {"content", line}});
    const std::vector<int32_t> ids = ids_of(messages_);
    if (static_cast<int64_t>(ids.size()) >= sampler_.context()) refuse_overflow(ids.size());
    SamplingOptions sampling = sampler_.sampling;
    sampling.seed += turns_++;
    const Generation g = json_ ? generator_.run(ids, sampling) : generator_.run(ids, sampling, show);
    Json answer = {{"role", "assistant"}, {"content", g.text}};
    if (json_) {
      Json line = answer;
      line.update({{"ids", g.ids}, {"logprobs", g.logprobs}, {"finish_reason", g.finish_reason}});
      fmt::print("{}\n", dumped(line));
    } else {
      fmt::print("\n");
    }
    std::fflush(stdout);
    if (g.finish_reason == "length" && !json_) {
      const bool full = static_cast<int64_t>(ids.size() + g.ids.size()) >= sampler_.context();
      fmt::print(stderr, "[the answer is cut: {}]\n",
                 full ? fmt::format("the model's context of {} tokens is full", sampler_.context())
                      : fmt::format("--max-tokens is {}", sampling.max_tokens));
    }
    messages_.push_back(std::move(answer));
  }

 private:
  std::vector<int32_t> ids_of(const Json& messages) const {
    ChatOptions options;
    options.add_generation_prompt = true;
    return sampler_.tokenizer->encode(template_.render(messages, options).text);
  }

  // Nothing is dropped behind the user's back: the conversation ends, and he learns which messages were too many.
  [[noreturn]] void refuse_overflow(size_t tokens) const {
    size_t fit = messages_.size() - 1;
    for (; fit > 0; --fit) {
      try {
        if (static_cast<int64_t>(ids_of(Json(messages_.begin(), messages_.begin() + fit)).size()) < sampler_.context())
          break;
      } catch (const ChatTemplateError&) {
        // A template may refuse a part of a conversation.
      }
    }
    throw std::invalid_argument(fmt::format(
        "the conversation has {} tokens, which leave no room for an answer in the model's context of {}: of its {} "
        "messages the first {} fit, message {} ({}) and what follows do not",
        tokens, sampler_.context(), messages_.size(), fit, fit + 1, shortened(messages_[fit])));
  }

  const Sampler& sampler_;
  const ChatTemplate& template_;
  const Generator generator_;
  const bool json_;
  Json messages_ = Json::array();
  uint64_t turns_ = 0;
};

int converse(const Options& o, const Sampler& sampler, const ChatTemplate& chat_template) {
  Conversation conversation(sampler, chat_template, o);
  if (!o.prompt.empty()) {
    conversation.turn(o.prompt);
    return 0;
  }
  if (!o.json) fmt::print("An empty line or Ctrl-D ends.\n");
  const auto ask = [&] {
    if (!o.json) show("> ");
  };
  for (std::string line; ask(), std::getline(std::cin, line) && !line.empty();) conversation.turn(line);
  if (!o.json) fmt::print("\n");
  return 0;
}

// Without a template: the model goes on from all that stands there.
int go_on(const Options& o, const Sampler& sampler) {
  const Generator generator(*sampler.model, *sampler.tokenizer);
  fmt::print("The model goes on from everything above; an empty line or Ctrl-D ends.\n");
  std::string past, line;
  for (uint64_t turn = 0; show("> "), std::getline(std::cin, line) && !line.empty(); ++turn) {
    past += line;
    // Older text leaves the context first, at a token's border.
    std::vector<int32_t> ids = prompt_ids(*sampler.tokenizer, past);
    const int64_t room = sampler.context() - std::min<int64_t>(o.sampling.max_tokens, sampler.context() / 2);
    if (static_cast<int64_t>(ids.size()) > room) {
      fmt::print("[the first {} tokens no longer fit the model's context]\n", ids.size() - room);
      ids.erase(ids.begin(), ids.end() - room);
    }
    SamplingOptions sampling = sampler.sampling;
    sampling.seed += turn;
    const Generation g = generator.run(ids, sampling, show);
    fmt::print("\n");
    past += g.text + "\n";
  }
  fmt::print("\n");
  return 0;
}

}  // namespace

Action chat_verb(CLI::App& command) {
  auto o = std::make_shared<Options>();
  o->sampling.temperature = 0.8;
  add_sampler(command, *o);
  command.add_option("--system", o->system, "the system message");
  auto* prompt =
      command.add_option("--prompt", o->prompt, "one message to answer, instead of lines from the standard input");
  auto* json =
      command.add_flag("--json", o->json, "one JSON object an answer: role, content, ids, logprobs, finish_reason");
  auto* plain = command.add_flag("--plain", o->plain, "no chat template: the model goes on from the text so far");
  command
      .add_flag("--render", o->render,
                "print the prompt that the template makes of a conversation, and stop: JSON from the standard input, a "
                "list of messages or {messages, tools, documents, add_generation_prompt, continue_final_message, "
                "chat_template, variables}; with --json one a line")
      ->excludes(plain)
      ->excludes(prompt)
      ->excludes("--system");
  plain->excludes(json)->excludes(prompt)->excludes("--system");
  return [o] {
    check(o->sampling);
    // A template is rendered without weights.
    const bool bare = o->render && std::filesystem::is_directory(o->model) &&
                      !std::filesystem::exists(std::filesystem::path(o->model) / "run.yaml");
    const std::filesystem::path folder = bare ? std::filesystem::path(o->model) : locate(o->model).folder;
    if (o->plain) return go_on(*o, load_sampler(*o, folder));
    if (o->render)
      return o->json ? render_json_lines(folder, std::cin, std::cout) : render_one(folder, std::cin, std::cout);
    try {
      const ChatTemplate chat_template = ChatTemplate::from_folder(folder);
      return converse(*o, load_sampler(*o, folder), chat_template);
    } catch (const NoChatTemplate& error) {
      throw std::runtime_error(fmt::format("{}; --plain goes on without one", error.what()));
    }
  };
}

}  // namespace cairn::cli
