// A configuration file as read: values that know the file and line they come from, before any of them has a meaning.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/location.h"
#include "trainer/config/options.h"

namespace cairn::config {

struct Tree {
  enum class Kind { null, scalar, list, map };
  struct Entry;

  Kind kind = Kind::null;
  Location where;
  std::string scalar;
  bool quoted = false;  // "8" is a text, 8 a number
  std::vector<Tree> items;
  std::vector<Entry> entries;  // in the file's order, keys differ

  bool is_map() const { return kind == Kind::map; }
  bool is_list() const { return kind == Kind::list; }
  bool is_null() const { return kind == Kind::null; }
  bool is_scalar() const { return kind == Kind::scalar; }
  const Entry* find(std::string_view key) const;
  Entry* find(std::string_view key);
  Tree& insert(const std::string& key, const Location& at);  // null until assigned
  void erase(std::string_view key);
  std::string found() const;  // how an error names it: "'abc'", "a list", "a section", "nothing"
};

struct Tree::Entry {
  std::string key;
  Location where;
  Tree value;
};

// YAML 1.2 (JSON is a part of it), one document. ConfigError names file and line of a syntax error or a repeated key.
Tree parse_yaml(const std::string& text, const std::string& file);
Tree read_yaml(const std::filesystem::path& file);

// Lays `over` on `base`: maps key by key, everything else replaced. Of keys that exclude one another (the kinds of a
// tokenizer, of a source) those of `base` go where `over` names another one.
void merge(Tree& base, const Tree& over);

// Replaces every `base: FILE` by what the file holds, with the keys beside it laid over. The file is looked for beside
// the file that names it, or in the current folder where the command line does. Cycles are refused.
void expand(Tree& tree);

// "optim.lr=1e-3" laid over the tree as one more file; list entries go by number, one past the end appends. A value
// that begins with { [ " or ' is YAML, any other stands for itself.
void apply_override(Tree& tree, const std::string& assignment);

// Whether the value of such an override names a file to include, which has to be known before expand().
bool override_includes(const std::string& assignment);

// A value by YAML's core schema: null, true, 12, 1.5, text; lists and maps of them.
Json to_json(const Tree& tree);

}  // namespace cairn::config
