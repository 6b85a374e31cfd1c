#include "trainer/config/rl_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "trainer/config/reader.h"
#include "trainer/config/resolve.h"
#include "trainer/config/rl_visit.h"
#include "trainer/config/writer.h"

namespace cairn::config {
namespace {

using Names = std::vector<std::string>;
using Table = std::map<std::string, Names>;

// Which keys a task reads beyond those of all.
const Table& task_keys() {
  static const Table table = {{"arithmetic", {"levels", "digits", "operands", "operators"}},
                              {"countdown", {"levels", "numbers", "largest"}},
                              {"sorting", {"levels", "numbers", "largest"}},
                              {"recall", {"levels", "pairs", "gap"}},
                              {"data", {"file", "evaluation", "fields", "answer", "extract", "pattern"}}};
  return table;
}
const Names kEveryTask = {"name", "prompt", "chat", "system", "held_out"};

const Table& reward_keys() {
  static const Table table = {{"number", {"from", "after_think"}},
                              {"choice", {"from", "after_think", "letters"}},
                              {"exact_match", {"from", "after_think", "normalize"}},
                              {"countdown", {"from", "after_think", "use_all", "partial"}},
                              {"format", {"pattern"}},
                              {"think_format_reward", {}},
                              {"soft_overlong_punishment_reward", {"max_completion_len", "soft_punish_cache"}},
                              {"cosine_scaled_reward",
                               {"from", "after_think", "max_completion_len", "min_value_wrong", "max_value_wrong",
                                "min_value_correct", "max_value_correct"}},
                              {"repetition_penalty_reward", {"ngram_size", "max_penalty"}},
                              {"length", {"target", "coefficient", "at_most"}},
                              {"program", {"program", "argv", "folder", "timeout", "restarts", "workers"}}};
  return table;
}
const Names kEveryReward = {"name", "label"};

// Where the answer may be looked for.
const Table& reward_places() {
  const Names numbers = {"boxed", "hashes", "tag", "last_line", "last", "text"};
  static const Table table = {{"number", numbers},
                              {"cosine_scaled_reward", numbers},
                              {"choice", {"boxed", "hashes", "tag", "phrase", "last_line", "last", "text"}},
                              {"exact_match", {"boxed", "hashes", "tag", "last_line", "text"}},
                              {"countdown", {"boxed", "hashes", "tag", "last_line", "text"}}};
  return table;
}

// Other trainers' rewards that mean something else here, and what to take.
const std::map<std::string, std::string>& other_rewards() {
  static const std::map<std::string, std::string> table = {
      {"accuracy_reward", "number compares exact values; expressions are a `program`'s to compare"},
      {"reasoning_accuracy_reward", "number looks behind the reasoning by itself"},
      {"get_soft_overlong_punishment", "soft_overlong_punishment_reward"},
      {"get_cosine_scaled_reward", "cosine_scaled_reward"},
      {"get_repetition_penalty_reward", "repetition_penalty_reward"},
      {"think_format", "think_format_reward"}};
  return table;
}

bool has(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// run.yaml writes every key out, so what counts is a value other than the default.
template <class S>
void check_keys(S options, const Names& every, const Table& table, const char* kind, const std::string& path,
                const Locate& locate) {
  S standard;
  const Json mine = Writer::write(options), plain = Writer::write(standard);
  const Names& own = table.at(options.name);
  for (const auto& [key, value] : mine.items()) {
    if (value == plain.at(key) || has(every, key) || has(own, key)) continue;
    Names allowed = every;
    allowed.insert(allowed.end(), own.begin(), own.end());
    fail(locate(key), path + "." + key,
         fmt::format("found it on the {} '{}', which does not read it; expected some of {}", kind, options.name,
                     fmt::join(allowed, ", ")));
  }
}

Locate in_tree(const Tree& tree) {
  return [&tree](const std::string& key) {
    const Tree* at = &tree;
    Location where = tree.where;
    for (std::string rest = key; !rest.empty();) {
      const auto dot = rest.find('.');
      const std::string name = rest.substr(0, dot);
      if (at->is_list() && std::stoul(name) < at->items.size()) {
        at = &at->items[std::stoul(name)];
        where = at->where;
      } else if (const auto* entry = at->find(name)) {
        where = entry->where;
        at = &entry->value;
      } else {
        break;
      }
      rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
    }
    return where;
  };
}

void resolve_path(std::string& path, const char* what, const std::string& key, const Location& where) {
  if (path.empty()) return;
  const std::string found = absolute_path(where, path);
  if (found.empty())
    fail(where, key,
         fmt::format("found '{}', which is neither beside the configuration nor in the current folder, expected {}",
                     path, what));
  path = found;
}

template <class S>
void read_section(const Tree& tree, const std::string& path, S& options) {
  Reader reader(tree, path);
  visit(reader, options);
  reader.finish();
}

}  // namespace

void check_task(TaskOptions& o, const std::string& path, const Locate& locate) {
  const auto refuse = [&](const std::string& key, const std::string& message) {
    fail(locate(key), path + "." + key, message);
  };
  if (o.name.empty()) refuse("name", fmt::format("found nothing, expected one of {}", fmt::join(task_names(), ", ")));
  check_keys(o, kEveryTask, task_keys(), "task", path, locate);
  if (!o.system.empty() && !o.chat)
    refuse("system", "found a system message while `chat` is false, expected chat: true, or the text in `prompt`");
  if (o.levels.empty()) refuse("levels", "found an empty list, expected at least one level, as in [1]");
  if (o.held_out > 0 && o.held_out < 0.001)
    refuse("held_out", fmt::format("found {}, expected 0 or at least 0.001", o.held_out));
  if (o.operators && (o.operators->empty() || o.operators->find_first_not_of("+-*") != std::string::npos))
    refuse("operators", fmt::format("found '{}', expected some of +, - and *, as in \"+-\"", *o.operators));
  if (o.name == "countdown" && o.numbers && *o.numbers > 8)
    refuse("numbers", fmt::format("found {}, expected at most 8 for countdown", *o.numbers));
  if (o.name != "data") return;
  if (o.file.empty()) refuse("file", "found nothing, expected a file of problems: JSON lines or an array of objects");
  if (o.prompt.empty()) refuse("prompt", "found nothing, expected a template such as \"{question}\"");
  if (o.answer.empty()) refuse("answer", "found nothing, expected a template such as \"{answer}\"");
  if ((o.extract == "pattern") != !o.pattern.empty())
    refuse("pattern", o.pattern.empty() ? "found nothing while `extract` is pattern, expected a regular expression"
                                        : "found a regular expression, expected it with `extract: pattern` alone");
  for (const auto& [name, from] : o.fields.names.items())
    if (!from.is_string())
      refuse("fields." + name, fmt::format("found {}, expected the name of a field of the file", from.dump()));
  resolve_path(o.file, "a file, a folder or a glob of problems", path + ".file", locate("file"));
  resolve_path(o.evaluation, "a file, a folder or a glob of problems", path + ".evaluation", locate("evaluation"));
}

void check_rewards(std::vector<RewardOptions>& options, const std::string& path, const Locate& locate) {
  if (options.empty())
    fail(locate(""), path,
         "found no reward, expected a list such as [{name: number}] that says how answers are judged");
  std::set<std::string> labels;
  for (std::size_t i = 0; i < options.size(); ++i) {
    RewardOptions& o = options[i];
    const std::string own = fmt::format("{}.{}", path, i);
    const Locate here = [&](const std::string& key) { return locate(fmt::format("{}.{}", i, key)); };
    const auto refuse = [&](const std::string& key, const std::string& message) {
      fail(here(key), own + "." + key, message);
    };
    if (o.name.empty() && (!o.program.empty() || !o.argv.empty())) o.name = "program";
    if (o.name.empty())
      refuse("name", fmt::format("found nothing, expected one of {}", fmt::join(reward_names(), ", ")));
    check_keys(o, kEveryReward, reward_keys(), "reward", own, here);
    if (o.name == "format" && o.pattern.empty()) refuse("pattern", "found nothing, expected a regular expression");
    if (o.name == "length" && o.target == 0 && !o.at_most)
      refuse("target", "found nothing, expected a number of tokens");
    if (o.name == "program" && o.program.empty() == o.argv.empty())
      refuse("program", o.argv.empty() ? "found nothing, expected a line for /bin/sh, or `argv`"
                                       : "found it beside `argv`, expected one or the other");
    if (o.max_completion_len && o.soft_punish_cache > *o.max_completion_len)
      refuse("soft_punish_cache", fmt::format("found {}, expected at most max_completion_len ({})", o.soft_punish_cache,
                                              *o.max_completion_len));
    if (o.letters.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ") != std::string::npos)
      refuse("letters", fmt::format("found '{}', expected capital letters such as ABCD", o.letters));
    for (const auto& place : o.from)
      if (const auto& places = reward_places().at(o.name); !has(places, place))
        refuse("from", fmt::format("found '{}', expected some of {} for {}", place, fmt::join(places, ", "), o.name));
    resolve_path(o.folder, "a folder", own + ".folder", here("folder"));
    if (o.label.empty()) {
      o.label = o.name;
      for (int n = 2; labels.contains(o.label); ++n) o.label = fmt::format("{}-{}", o.name, n);
    }
    if (!labels.insert(o.label).second)
      refuse("label", fmt::format("found '{}', which another reward has already, expected a name of its own", o.label));
  }
}

TaskOptions read_task(const Tree& tree, const std::string& path) {
  TaskOptions options;
  read_section(tree, path, options);
  check_task(options, path, in_tree(tree));
  return options;
}

std::vector<RewardOptions> read_rewards(const Tree& tree, const std::string& path) {
  if (tree.is_map()) {
    Tree list;
    list.kind = Tree::Kind::list;
    list.where = tree.where;
    list.items.push_back(tree);
    return read_rewards(list, path);
  }
  if (!tree.is_list() && !tree.is_null())
    fail(tree.where, path, fmt::format("found {}, expected a list such as [{{name: number}}]", tree.found()));
  std::vector<RewardOptions> options(tree.items.size());
  for (std::size_t i = 0; i < options.size(); ++i) {
    const std::string own = fmt::format("{}.{}", path, i);
    if (const auto* name = tree.items[i].find("name"))
      if (const auto other = other_rewards().find(name->value.scalar); other != other_rewards().end())
        fail(name->where, own + ".name",
             fmt::format("found '{}', which is not here, expected: {}", other->first, other->second));
    read_section(tree.items[i], own, options[i]);
  }
  check_rewards(options, path, in_tree(tree));
  return options;
}

Json to_json(const TaskOptions& options) {
  TaskOptions copy = options;
  return Writer::write(copy);
}

Json to_json(const std::vector<RewardOptions>& options) {
  Json list = Json::array();
  for (RewardOptions copy : options) list.push_back(Writer::write(copy));
  return list;
}

}  // namespace cairn::config
