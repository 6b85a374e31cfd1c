#include "trainer/config/writer.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/config/tree.h"
#include "trainer/config/visit.h"

namespace cairn::config {
namespace {

constexpr std::size_t kLine = 110;  // columns of a list or section in one line

// Plain where YAML would read the same text back, else in JSON's quotes, which YAML shares.
std::string text_yaml(const std::string& text) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '/' || c == '.' || c == '-'; };
  const bool safe =
      !text.empty() && std::all_of(text.begin(), text.end(), plain) && text.front() != '-' && text != "null";
  if (safe) {
    Tree scalar;
    scalar.kind = Tree::Kind::scalar;
    scalar.scalar = text;
    if (to_json(scalar).is_string()) return text;
  }
  return Json(text).dump();
}

// YAML 1.1 readers (PyYAML) take 1e-08 for a text and 1.0e-08 for a number.
std::string number_yaml(const Json& json) {
  std::string text = json.dump();
  const auto exponent = text.find('e');
  if (json.is_number_float() && exponent != std::string::npos && text.find('.') == std::string::npos)
    text.insert(exponent, ".0");
  return text;
}

std::string flow(const Json& json) {
  if (json.is_string()) return text_yaml(json.get<std::string>());
  if (!json.is_structured()) return number_yaml(json);
  std::vector<std::string> parts;
  for (const auto& [key, value] : json.items())
    parts.push_back(json.is_object() ? fmt::format("{}: {}", text_yaml(key), flow(value)) : flow(value));
  return json.is_object() ? fmt::format("{{{}}}", fmt::join(parts, ", ")) : fmt::format("[{}]", fmt::join(parts, ", "));
}

bool fits(const Json& json, std::size_t indent) {
  if (!json.is_structured() || json.empty()) return true;
  if (json.is_object() && indent == 0) return false;
  const bool flat =
      std::none_of(json.begin(), json.end(), [](const Json& value) { return value.is_structured() && !value.empty(); });
  return flat && json.size() <= (json.is_array() ? 64u : 4u) && flow(json).size() + indent < kLine;
}

void block(const Json& json, std::size_t indent, std::string& out) {
  const std::string pad(indent, ' ');
  if (json.is_array()) {
    for (const auto& item : json) {
      if (fits(item, indent + 2)) {
        out += pad + "- " + flow(item) + "\n";
      } else {  // the first key stands beside the dash
        std::string inner;
        block(item, indent + 2, inner);
        inner[indent] = '-';
        out += inner;
      }
    }
    return;
  }
  for (const auto& [key, value] : json.items()) {
    out += pad + text_yaml(key) + ":";
    if (fits(value, indent + key.size() + 2)) {
      out += " " + flow(value) + "\n";
    } else {
      out += "\n";
      block(value, indent + 2, out);
    }
  }
}

}  // namespace

std::string write_yaml(const Json& json) {
  if (!json.is_structured() || json.empty()) return flow(json) + "\n";
  std::string out;
  block(json, 0, out);
  return out;
}

Json to_json(const RunConfig& config) {
  RunConfig copy = config;
  Json json = Writer::write(copy);
  if (config.objective != "grpo")
    for (const char* section : {"rl", "rollout", "task", "rewards"}) json.erase(section);
  if (config.staged) {
    json["stages"] = Json::array();
    for (const auto& stage : config.stages) {
      Json item = {{"name", stage.name}, {"steps", *stage.steps}};
      item.update(stage.overrides);
      json["stages"].push_back(std::move(item));
    }
  }
  return json;
}

std::string to_yaml(const RunConfig& config) { return write_yaml(to_json(config)); }

}  // namespace cairn::config
