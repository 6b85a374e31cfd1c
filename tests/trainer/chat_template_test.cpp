// labels: quick
// The template engine against what jinja2 gives; the oracle compares far more of it with jinja2 itself.
#include "trainer/chat/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>

namespace cairn {
namespace {

using Json = nlohmann::ordered_json;

const Json kChat = {{{"role", "user"}, {"content", "Hi"}}, {{"role", "assistant"}, {"content", "Hello ☀"}}};
const Json kVariables = {{"n", 7}, {"f", 0.1}, {"s", "naïve ☀"}, {"l", {3, 1, 2}}, {"d", {{"b", 1}, {"items", true}}}};

std::string rendered(const std::string& source) {
  ChatOptions options;
  options.variables = kVariables;
  return ChatTemplate(source, "t", {{"bos_token", "<s>"}}).render(kChat, options).text;
}

// What stops SOURCE: "reason line: message".
std::string refusal(const std::string& source) {
  static constexpr const char* kReasons[] = {"syntax", "unsupported", "raised", "failed", "limit", "input"};
  try {
    return "rendered: " + rendered(source);
  } catch (const ChatTemplateError& error) {
    return std::string(kReasons[error.reason]) + " " + std::to_string(error.line) + ": " + error.message;
  }
}

struct Case {
  const char *source, *expected;
};

void expect_all(const std::vector<Case>& cases) {
  for (const auto& [source, expected] : cases) EXPECT_EQ(rendered(source), expected) << source;
}

TEST(ChatTemplate, WhitespaceOfTags) {
  expect_all({
      {"a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"},  // trim_blocks and lstrip_blocks
      {"a\n  {{ 'x' }}\n b", "a\n  x\n b"},                        // neither is for {{ }}
      {"a \n {%- if true -%} \n b{% endif %}", "ab"},
      {"a\n  {%+ if true +%}\nb{% endif %}", "a\n  \nb"},
      {"a  {% if true %}b{% endif %}", "a  b"},  // the line does not begin with the tag
      {"x\n  {# a comment #}\ny", "x\ny"},
      {"x {#- a\ncomment -#} \n y", "xy"},
      {"{{ 1 -}} \n {{- 2 }}", "12"},
      {"a\r\nb\rc\n", "a\nb\nc"},  // newlines; the last one goes
      {"a\n\n", "a\n"},
      {"{% raw %}{{ x }} {% y %}{% endraw %}!", "{{ x }} {% y %}!"},
      {"\u00a0{%- if 1 %}a{% endif %}", "a"},  // Unicode's spaces are spaces
      {"{{ '}}' }}{{ {'a': {}} }}", "}}{'a': {}}"},
  });
}

TEST(ChatTemplate, Expressions) {
  expect_all({
      {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}",
       "3 -4 2 3.5 1024 1e+16 1e-05 0.30000000000000004"},
      {"{{ none }} {{ true }} {{ nope }}| {{ [1, 'a', none, 2.0, (1,)] }} {{ {'k': \"it's\", 1: nope} }}",
       "None True | [1, 'a', None, 2.0, (1,)] {'k': \"it's\", 1: Undefined}"},
      {"{{ 1 < n <= 7 and not false or nope.x }} {{ 3 in l }} {{ 9 not in l }} {{ 'ï' in s }}", "True True True True"},
      {"{{ s[2] }}{{ s[-1] }}{{ s[1:4] }}{{ s[::-1] }} {{ s | length }} {{ l[::2] }} {{ l[9] }}",
       "ï☀aïv☀ evïan 7 [3, 2] "},
      {"{{ 'a' if n == 7 else 'b' }}{{ 'a' if false }}{{ n ~ none ~ 'x' }} {{ 'a' 'b' }}", "a7Nonex ab"},
      {"{{ d.items() | list }} {{ d['items'] }} {{ d.b }} {{ d.append }} {{ l.append }}",
       "[('b', 1), ('items', True)] True 1  "},
      {"{{ l | sort | join(', ') }} {{ l | max }} {{ messages | map(attribute='role') | list }}",
       "1, 2, 3 3 ['user', 'assistant']"},
      {"{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'A-b c' | title }}{{ 'ß' | upper }}",
       "1A-B CSS"},
      {"{{ {'a': [1, 2.5, none, 'é\"\\n'], 'b': {}} | tojson }}", "{\"a\": [1, 2.5, null, \"é\\\"\\n\"], \"b\": {}}"},
      {"{{ {'a': [1], 'b': []} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"},
      {"{{ ' x '.strip() }}{{ 'a,b'.split(',')[-1] }}{{ 'abc'.replace('b', '') }}{{ 'x'.startswith(('y', 'x')) }}",
       "xbacTrue"},
      {"{{ '%s|%03d|%.1f' % ('a', 5, 0.25) }} {{ '{} {x!r}'.format(1, x='q') }}", "a|005|0.2 1 'q'"},
      {"{{ n is defined }} {{ nope is undefined }} {{ d is mapping }} {{ s is string }} {{ 1 is number }} {{ n is odd "
       "}}",
       "True True True True True True"},
      {"{{ '\\u2600\\x41\\101\\q' }}", "☀AA\\q"},
  });
}

TEST(ChatTemplate, Statements) {
  expect_all({
      {"{% for x in l %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% endfor %}", "13,21,32"},
      {"{% for x in l if x > 1 %}{{ loop.length }}{{ loop.previtem }}{{ x }}{% else %}none{% endfor %}", "23232"},
      {"{% for x in [] %}a{% else %}none{% endfor %}", "none"},
      {"{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor "
       "%}",
       "32"},
      {"{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "b=1;items=True;"},
      // A set inside a loop ends with the turn; a namespace lasts.
      {"{% set x = 0 %}{% for i in l %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "3120"},
      {"{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "6"},
      {"{% if n %}{% set x = 1 %}{% endif %}{{ x }}{% set a, b = (1, 2) %}{{ a }}{{ b }}", "112"},
      {"{% set x | upper %}a{{ n }}b{% endset %}{{ x }}", "A7B"},
      // What the template sets somewhere hides the caller's variable from the loops before.
      {"{% for i in [1] %}{{ n }}{% endfor %}{% set n = 2 %}{{ n }}", "2"},
      {"{% macro m(a, b=2) %}{{ a }}{{ b }}{{ n }}{% endmacro %}{{ m(1) }} {{ m(b=3, a=s) }}", "127 naïve ☀37"},
      {"{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(x) m() %}x{{ x }}{% endcall %}", "<x1>"},
      {"{% with a = 1 %}{{ a }}{% endwith %}{{ a }}{% filter upper %}x{{ s }}{% endfilter %}", "1XNAÏVE ☀"},
      // A generator gives its items once.
      {"{% set g = l | select('gt', 1) %}{{ g | list }}{{ g | list }}", "[3, 2][]"},
      {"{{ bos_token }}{{ messages[0].content }}", "<s>Hi"},
  });
}

TEST(ChatTemplate, Refusals) {
  const std::vector<Case> cases = {
      {"a\n{{ raise_exception('not ' + messages[0].role) }}", "raised 2: not user"},
      {"\n{{ nope.x }}", "failed 2: 'nope' is undefined"},
      {"{{ messages[0].nope.x }}", "failed 1: 'dict object' has no attribute 'nope'"},
      {"{{ n + s }}", "failed 1: unsupported operand type(s) for +: 'int' and 'str'"},
      {"{{ 1 / 0 }}", "failed 1: division by zero"},
      {"{{ l.append(1) }}", "failed 1: access to attribute 'append' of 'list' object is unsafe."},
      {"{{ s.__class__.__mro__ }}", "failed 1: access to attribute '__class__' of 'str' object is unsafe."},
      {"a\n\n{% include 'x' %}", "unsupported 3: the tag 'include' is not supported"},
      {"{{ s | groupby('x') }}", "unsupported 1: the filter 'groupby' is not supported"},
      {"{% for x in l recursive %}{% endfor %}", "unsupported 1: a recursive for is not supported"},
      {"{{ s.encode() }}", "unsupported 1: the attribute 'encode' of 'str' is not supported"},
      {"{{ 9223372036854775807 + 1 }}", "unsupported 1: an integer beyond 64 bits is not supported"},
      {"{{ s | zip }}", "syntax 1: No filter named 'zip'."},
      {"\n{% if n %}",
       "syntax 2: Unexpected end of template. Jinja was looking for the following tags: 'elif' or 'else' or 'endif'."},
      {"{% nope %}", "syntax 1: Encountered unknown tag 'nope'."},
      {"{{ n", "syntax 1: unexpected end of template, expected 'end of print statement'."},
      {"{% break %}", "syntax 1: 'break' outside loop"},
      {"{# x", "syntax 1: Missing end of comment tag"},
      {"{{ range(200000) }}", "failed 1: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."},
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
       "limit 1: it takes too long: more than the steps that a template may take"},
      {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "limit 1: it nests too deeply"},
      {"{{ 'x' * 999999999999 }}", "limit 1: a value repeated too often"},
  };
  for (const auto& [source, expected] : cases) EXPECT_EQ(refusal(source), expected) << source;
}

TEST(ChatTemplate, SpansOfTheAssistant) {
  const ChatTemplate marked(
      "{% for m in messages %}{% if m.role == 'assistant' %}☀:{% generation %}{{ m.content }}.{% endgeneration %}{% "
      "endif %}"
      "{% endfor %}",
      "t");
  EXPECT_TRUE(marked.has_generation());
  const RenderedChat chat = marked.render(kChat);
  ASSERT_EQ(chat.assistant.size(), 1u);
  const auto [begin, end] = chat.assistant[0];
  EXPECT_EQ(chat.text.substr(begin, end - begin), "Hello ☀.");
  const ChatTemplate caught("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x }}", "t");
  EXPECT_THROW(caught.render(kChat), ChatTemplateError);
}

TEST(ChatTemplate, ConversationsThatAreNone) {
  const ChatTemplate plain("{{ messages | length }}", "t");
  for (const Json& wrong : {Json::array(), Json(3), Json::object(), Json::array({1})})
    EXPECT_THROW(plain.render(wrong), ChatTemplateError);
  ChatOptions options;
  options.tools = "x";
  EXPECT_THROW(plain.render(kChat, options), ChatTemplateError);
  options = {.tools = nullptr, .add_generation_prompt = true, .continue_final_message = true};
  EXPECT_THROW(plain.render(kChat, options), ChatTemplateError);
  // A number that JSON's reader could not keep must not come out as another.
  options = {};
  options.variables = Json::parse(R"({"x": 12345678901234567890123})");
  EXPECT_THROW(plain.render(kChat, options), ChatTemplateError);
}

TEST(ChatTemplate, MessagesAsTransformersGivesThem) {
  const Json chat = Json::parse(R"([{"role": "assistant", "content": null, "reasoning": "r"}])");
  EXPECT_EQ(ChatTemplate("{{ messages[0] | tojson }}", "t").render(chat).text,
            R"({"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"})");
  ChatOptions options;
  options.continue_final_message = true;
  EXPECT_EQ(
      ChatTemplate("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", "t").render(kChat, options).text,
      "<Hi><Hello ☀");
}

TEST(ChatTemplate, TheClockIsGiven) {
  const ChatTemplate clock("{{ strftime_now('%d %b %Y %H:%M:%S.%f|%z') }}", "t");
  EXPECT_TRUE(clock.reads_clock());
  std::tm local{};
  local.tm_year = 124;
  local.tm_mon = 6;
  local.tm_mday = 26;
  local.tm_hour = 13;
  local.tm_min = 5;
  local.tm_isdst = -1;
  ChatOptions options;
  options.now = std::chrono::system_clock::from_time_t(std::mktime(&local)) + std::chrono::microseconds(42);
  EXPECT_EQ(clock.render(kChat, options).text, "26 Jul 2024 13:05:00.000042|");
}

TEST(ChatTemplate, Folders) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("cairn-chat-" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(folder / name) << text; };
  EXPECT_THROW(ChatTemplate::from_folder(folder), NoChatTemplate);
  write("tokenizer_config.json", R"({"eos_token": {"content": "</s>"}, "add_bos_token": true, "bos_token": null,
    "added_tokens_decoder": {}, "chat_template": [{"name": "default", "template": "D{{ eos_token }}{{ bos_token }}"},
    {"name": "tool_use", "template": "T{{ tools | length }}"}]})");
  write("special_tokens_map.json", R"({"eos_token": "older"})");
  EXPECT_EQ(special_tokens(folder), (std::map<std::string, std::string>{{"eos_token", "</s>"}}));
  EXPECT_EQ(ChatTemplate::from_folder(folder).render(kChat).text, "D</s>");
  ChatOptions options;
  options.tools = Json::array({Json::object()});
  EXPECT_EQ(ChatTemplate::from_folder(folder).render(kChat, options).text, "T1");
  write("chat_template.jinja", "F\n");
  EXPECT_EQ(ChatTemplate::from_folder(folder).render(kChat, options).text, "F");
  write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_EQ(special_tokens(folder).at("eos_token"), "older");
  fs::remove(folder / "chat_template.jinja");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_THROW(ChatTemplate::from_folder(folder), std::runtime_error);
  write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_THROW(ChatTemplate::from_folder(folder), std::runtime_error);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace cairn
