#include "trainer/config/tree.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

namespace cairn::config {
namespace {

constexpr int kDeepest = 64;  // nesting; an alias to its own parent would never end

Tree convert(const YAML::Node& node, const std::string& file, int depth) {
  Tree tree;
  tree.where = {file, std::max(0, node.Mark().line) + 1};
  if (depth > kDeepest) fail(tree.where, "", fmt::format("found values nested deeper than {}", kDeepest));
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      break;
    case YAML::NodeType::Scalar:
      tree.kind = Tree::Kind::scalar;
      tree.scalar = node.Scalar();
      tree.quoted = node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str";
      break;
    case YAML::NodeType::Sequence:
      tree.kind = Tree::Kind::list;
      for (const auto& item : node) tree.items.push_back(convert(item, file, depth + 1));
      break;
    case YAML::NodeType::Map:
      tree.kind = Tree::Kind::map;
      for (const auto& entry : node) {
        const Location at{file, std::max(0, entry.first.Mark().line) + 1};
        if (!entry.first.IsScalar()) fail(at, "", "found a list or a section as a key, expected a name");
        const std::string key = entry.first.Scalar();
        if (const auto* first = tree.find(key))
          fail(at, key, fmt::format("found the key a second time, expected it once (line {})", first->where.line));
        tree.insert(key, at) = convert(entry.second, file, depth + 1);
      }
      break;
  }
  return tree;
}

// Keys of which a section has one at most; `section` empty: whatever the section is called.
struct Alternatives {
  std::string_view section;
  std::vector<std::string_view> keys;
};
const Alternatives kAlternatives[] = {{"", {"text", "jsonl", "shards"}}, {"tokenizer", {"train", "file", "bytes"}}};

// Whether a value chooses its key among alternatives: run.yaml writes out the others as null, false or "".
bool chosen(const Tree& value) {
  return !value.is_null() && !(value.is_scalar() && (value.scalar.empty() || value.scalar == "false"));
}

// Where `key` is about to be set in section `name`, the keys that it excludes go.
void drop_alternatives(Tree& tree, std::string_view name, std::string_view key) {
  for (const auto& [section, keys] : kAlternatives) {
    if ((!section.empty() && section != name) || std::find(keys.begin(), keys.end(), key) == keys.end()) continue;
    for (const auto& other : keys)
      if (other != key) tree.erase(other);
  }
}

// `name` is the key that the section stands under.
void merge_named(Tree& base, const Tree& over, std::string_view name) {
  if (!base.is_map() || !over.is_map()) {
    base = over;
    return;
  }
  // All that `over` excludes goes first: where `over` itself names two of them, both stay and the check refuses them.
  for (const auto& entry : over.entries)
    if (chosen(entry.value)) drop_alternatives(base, name, entry.key);
  for (const auto& entry : over.entries) {
    if (auto* mine = base.find(entry.key)) {
      mine->where = entry.where;
      merge_named(mine->value, entry.value, entry.key);
    } else {
      base.entries.push_back(entry);
    }
  }
}

bool has_file_of(const Tree& tree) {  // does any `base:` stand in it
  for (const auto& entry : tree.entries)
    if (entry.key == "base" || has_file_of(entry.value)) return true;
  return std::any_of(tree.items.begin(), tree.items.end(), has_file_of);
}

using Edges = std::map<std::string, std::set<std::string>>;  // file -> the files that it includes

bool leads_to(const Edges& edges, const std::string& from, const std::string& to) {
  if (from == to) return true;
  const auto next = edges.find(from);
  return next != edges.end() && std::any_of(next->second.begin(), next->second.end(),
                                            [&](const auto& file) { return leads_to(edges, file, to); });
}

void expand_within(Tree& tree, std::string_view name, Edges& edges) {
  namespace fs = std::filesystem;
  while (tree.is_map()) {
    const auto* base = tree.find("base");
    if (!base) break;
    const Location at = base->where;
    if (!base->value.is_scalar() || base->value.scalar.empty())
      fail(at, "base", fmt::format("found {}, expected the name of a YAML file", base->value.found()));
    const fs::path file = (fs::path(at.file).parent_path() / base->value.scalar).lexically_normal();
    if (!fs::is_regular_file(file))
      fail(at, "base",
           fmt::format("found '{}', expected a YAML file (there is none at '{}')", base->value.scalar, file.string()));
    const std::string to = fs::weakly_canonical(file).string();
    const std::string from = at.file.empty() ? "" : fs::weakly_canonical(at.file).string();
    if (leads_to(edges, to, from))
      fail(at, "base",
           fmt::format("found '{}', which includes itself, expected a file that does not lead back", file.string()));
    edges[from].insert(to);
    Tree under = read_yaml(file);
    if (under.is_null()) under.kind = Tree::Kind::map;
    if (!under.is_map()) fail(under.where, "", fmt::format("found {}, expected keys with values", under.found()));
    tree.erase("base");
    merge_named(under, tree, name);
    tree = std::move(under);
  }
  for (auto& entry : tree.entries) expand_within(entry.value, entry.key, edges);
  for (auto& item : tree.items) expand_within(item, "", edges);
}

std::pair<std::string, std::string> split_assignment(const std::string& assignment) {
  const auto equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0)
    fail({}, "", fmt::format("found '{}', expected key=value such as optim.lr=1e-3", assignment));
  return {assignment.substr(0, equals), assignment.substr(equals + 1)};
}

Tree override_value(const std::string& key, const std::string& text) {
  Tree value;
  if (!text.empty() && std::string_view("{[\"'").find(text.front()) != std::string_view::npos) {
    try {
      value = convert(YAML::Load(text), "", 0);
    } catch (const YAML::Exception& error) {
      fail({}, key, fmt::format("found '{}', expected YAML: {}", text, error.msg));
    }
  } else if (text != "null" && text != "~") {
    value.kind = Tree::Kind::scalar;
    value.scalar = text;
    value.quoted = text.empty();
  }
  return value;
}

Json scalar_json(const std::string& text) {
  static const std::regex integer("[-+]?[0-9]+"), real("[-+]?(\\.[0-9]+|[0-9]+(\\.[0-9]*)?)([eE][-+]?[0-9]+)?");
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  const char* first = text.data() + (text.starts_with('+') ? 1 : 0);
  const char* last = text.data() + text.size();
  if (std::regex_match(text, integer)) {
    int64_t value;
    if (std::from_chars(first, last, value).ec == std::errc()) return value;
    uint64_t large;
    if (std::from_chars(first, last, large).ec == std::errc()) return large;
  }
  if (std::regex_match(text, real)) {
    double value;
    if (std::from_chars(first, last, value).ec == std::errc()) return value;
  }
  return text;
}

}  // namespace

const Tree::Entry* Tree::find(std::string_view key) const {
  for (const auto& entry : entries)
    if (entry.key == key) return &entry;
  return nullptr;
}

Tree::Entry* Tree::find(std::string_view key) { return const_cast<Entry*>(std::as_const(*this).find(key)); }

Tree& Tree::insert(const std::string& key, const Location& at) {
  kind = Kind::map;
  entries.push_back({key, at, {}});
  entries.back().value.where = at;
  return entries.back().value;
}

void Tree::erase(std::string_view key) {
  std::erase_if(entries, [&](const Entry& entry) { return entry.key == key; });
}

std::string Tree::found() const {
  switch (kind) {
    case Kind::null:
      return "nothing";
    case Kind::scalar:
      return quoted ? fmt::format("the text '{}'", scalar) : fmt::format("'{}'", scalar);
    case Kind::list:
      return "a list";
    case Kind::map:
      return "a section";
  }
  return "";
}

Tree parse_yaml(const std::string& text, const std::string& file) {
  try {
    const auto documents = YAML::LoadAll(text);
    if (documents.size() > 1) fail({file, documents[1].Mark().line + 1}, "", "found a second document, expected one");
    if (!documents.empty()) return convert(documents[0], file, 0);
  } catch (const YAML::Exception& error) {
    fail({file, std::max(0, error.mark.line) + 1}, "", "found no valid YAML: " + error.msg);
  }
  Tree empty;
  empty.where = {file, 1};
  return empty;
}

Tree read_yaml(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file))
    throw std::runtime_error(fmt::format("{}: the configuration cannot be read, expected a YAML file", file.string()));
  std::ostringstream text;
  text << in.rdbuf();
  return parse_yaml(text.str(), file.string());
}

void merge(Tree& base, const Tree& over) { merge_named(base, over, ""); }

void expand(Tree& tree) {
  Edges edges;
  expand_within(tree, "", edges);
}

bool override_includes(const std::string& assignment) {
  const auto [key, text] = split_assignment(assignment);
  return key == "base" || key.ends_with(".base") || has_file_of(override_value(key, text));
}

void apply_override(Tree& tree, const std::string& assignment) {
  const auto [path, text] = split_assignment(assignment);
  const Tree value = override_value(path, text);
  Tree* at = &tree;
  std::string_view rest = path, name, parent;
  while (true) {
    const auto dot = rest.find('.');
    name = rest.substr(0, dot);
    if (name.empty()) fail({}, path, "found an empty name, expected names with single dots between them");
    if (at->is_list()) {
      std::size_t index = 0;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
      if (error != std::errc() || end != name.data() + name.size() || index > at->items.size())
        fail({}, path,
             fmt::format("found '{}' where a list is, expected a number from 0 to {} (the last one appends)", name,
                         at->items.size()));
      if (index == at->items.size()) at->items.emplace_back();
      at = &at->items[index];
    } else {
      if (!at->is_map() && !at->is_null()) {  // `keep: all` gives way to keep.last
        at->kind = Tree::Kind::map;
        at->scalar.clear();
      }
      if (dot != std::string_view::npos || chosen(value)) drop_alternatives(*at, parent, name);
      auto* entry = at->find(name);
      if (!entry) {
        at->insert(std::string(name), {});
        entry = &at->entries.back();
      }
      if (dot == std::string_view::npos) entry->where = {};
      at = &entry->value;
    }
    if (dot == std::string_view::npos) break;
    parent = name;
    rest = rest.substr(dot + 1);
  }
  merge_named(*at, value, name);
}

Json to_json(const Tree& tree) {
  switch (tree.kind) {
    case Tree::Kind::null:
      return nullptr;
    case Tree::Kind::scalar:
      return tree.quoted ? Json(tree.scalar) : scalar_json(tree.scalar);
    case Tree::Kind::list: {
      Json list = Json::array();
      for (const auto& item : tree.items) list.push_back(to_json(item));
      return list;
    }
    case Tree::Kind::map: {
      Json map = Json::object();
      for (const auto& entry : tree.entries) map[entry.key] = to_json(entry.value);
      return map;
    }
  }
  return nullptr;
}

}  // namespace cairn::config
