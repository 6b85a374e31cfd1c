#include "trainer/data/template.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <stdexcept>

namespace cairn::data {
namespace {

bool name_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// The length of "name.name|filter" at the start of `text`, 0 where there is none.
size_t name_length(std::string_view text) {
  if (text.empty() || !(std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '_')) return 0;
  size_t i = 0;
  while (i < text.size() && (name_char(text[i]) || ((text[i] == '.' || text[i] == '|' || text[i] == '-') &&
                                                    i + 1 < text.size() && name_char(text[i + 1]))))
    ++i;
  return i;
}

std::string plain(const Json& value, const std::string& path) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) throw std::runtime_error(fmt::format("field '{}' is null", path));
  if (value.is_structured())
    throw std::runtime_error(fmt::format("field '{0}' is {1}, expected a text or a number; {{{0}|lines}} writes a list",
                                         path, value.is_array() ? "a list" : "an object"));
  return value.dump();
}

std::string lines(const Json& value, const std::string& path, bool letters) {
  if (!value.is_array()) throw std::runtime_error(fmt::format("field '{}' is {}, expected a list", path, value.dump()));
  if (letters && value.size() > 26)
    throw std::runtime_error(fmt::format("field '{}' has {} entries, more than letters", path, value.size()));
  std::string out;
  for (size_t i = 0; i < value.size(); ++i) {
    if (i > 0) out += '\n';
    if (letters) out += fmt::format("{}. ", static_cast<char>('A' + i));
    out += plain(value[i], fmt::format("{}.{}", path, i));
  }
  return out;
}

std::string letter(const Json& value, const std::string& path) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > 25)
    throw std::runtime_error(fmt::format("field '{}' is {}, expected a number from 0 (A) to 25", path, value.dump()));
  return std::string(1, static_cast<char>('A' + value.get<int64_t>()));
}

std::string trim(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == text.npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

using Filter = std::string (*)(const Json&, const std::string&);
const std::map<std::string, Filter>& filters() {
  static const std::map<std::string, Filter> table = {
      {"letters", [](const Json& v, const std::string& path) { return lines(v, path, true); }},
      {"lines", [](const Json& v, const std::string& path) { return lines(v, path, false); }},
      {"letter", letter},
      {"json", [](const Json& v, const std::string&) { return v.dump(); }},
      {"trim", [](const Json& v, const std::string& path) { return trim(plain(v, path)); }},
  };
  return table;
}

}  // namespace

const Json& field_at(const Json& record, const std::string& path, const std::string& key) {
  const Json* at = &record;
  for (std::string rest = path; !rest.empty();) {
    if (at->is_object() && at->contains(rest)) return at->at(rest);
    const auto dot = rest.find('.');
    const std::string name = rest.substr(0, dot);
    const bool number = !name.empty() && name.size() < 9 && std::all_of(name.begin(), name.end(), ::isdigit);
    if (at->is_object() && at->contains(name)) {
      at = &at->at(name);
    } else if (at->is_array() && number && std::stoul(name) < at->size()) {
      at = &at->at(std::stoul(name));
    } else {
      std::vector<std::string> names;
      if (record.is_object())
        for (const auto& item : record.items()) names.push_back(item.key());
      throw std::runtime_error(
          fmt::format("no field '{}', which {} names; it has: {}", path, key, fmt::join(names, ", ")));
    }
    rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
  }
  return *at;
}

Template::Template(const std::string& text, const std::string& key) : key_(key) {
  std::string plain_text;
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = std::string_view(text).substr(i);
    const bool twice = rest.starts_with("{{");
    const size_t length = rest[0] == '{' ? name_length(rest.substr(twice ? 2 : 1)) : 0;
    if (length > 0 && twice && rest.substr(2 + length).starts_with("}}")) {
      plain_text += fmt::format("{{{}}}", rest.substr(2, length));
      i += length + 4;
    } else if (length > 0 && !twice && rest.substr(1 + length).starts_with("}")) {
      if (!plain_text.empty()) pieces_.push_back({std::move(plain_text), "", ""});
      plain_text.clear();
      const std::string name(rest.substr(1, length));
      const auto bar = name.find('|');
      Piece piece{"", name.substr(0, bar), bar == name.npos ? "" : name.substr(bar + 1)};
      if (!piece.filter.empty() && !filters().contains(piece.filter)) {
        std::vector<std::string> names;
        for (const auto& filter : filters()) names.push_back(filter.first);
        throw std::invalid_argument(fmt::format("{}: found the filter '{}' in {{{}}}, expected one of {}", key,
                                                piece.filter, name, fmt::join(names, ", ")));
      }
      pieces_.push_back(std::move(piece));
      i += length + 2;
    } else {
      plain_text += text[i++];
    }
  }
  if (!plain_text.empty()) pieces_.push_back({plain_text, "", ""});
  if (pieces_.size() == 1 && pieces_[0].filter.empty()) only_field_ = pieces_[0].path;
}

std::string Template::render(const Json& record) const {
  std::string out;
  for (const auto& [text, path, filter] : pieces_) {
    if (path.empty()) {
      out += text;
    } else {
      const Json& value = field_at(record, path, key_);
      out += filter.empty() ? plain(value, path) : filters().at(filter)(value, path);
    }
  }
  return out;
}

}  // namespace cairn::data
