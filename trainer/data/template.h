// Prompt templates: `{question}` stands for a field of a record, `{type.name}` for one inside it, `{options.0}` for an
// entry of a list, `{options|letters}` for what a filter makes of it. Braces that hold no name stay as they are
// (`\boxed{}`), and `{{name}}` is the text {name}.
// Filters: letters (a list as lines "A. ...", "B. ..."), lines (a list as lines), letter (0 -> A), json, trim.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cairn::data {

using Json = nlohmann::ordered_json;

class Template {
 public:
  // Throws std::invalid_argument for a filter that is not there; `key` ("task.prompt") names the template.
  Template(const std::string& text, const std::string& key);

  // Throws std::runtime_error naming the field that the record lacks or whose kind does not fit.
  std::string render(const Json& record) const;

  // The field, where the template is that one placeholder and nothing else, without a filter; else "".
  const std::string& only_field() const { return only_field_; }

 private:
  struct Piece {
    std::string text, path, filter;  // a piece is a text, or a path with perhaps a filter
  };
  std::string key_, only_field_;
  std::vector<Piece> pieces_;
};

// The value at "a.b.0"; a key that itself has dots goes first. Throws std::runtime_error that lists the fields.
const Json& field_at(const Json& record, const std::string& path, const std::string& key);

}  // namespace cairn::data
