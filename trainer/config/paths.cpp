#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "trainer/config/resolve.h"

namespace cairn::config {
namespace {

namespace fs = std::filesystem;

// What data.train.N.text may be besides a path; the data folder knows how to get them.
const std::set<std::string> kKnownText = {"foldoc"};

bool is_there(const fs::path& path) {  // of a glob: the folder before its first wildcard
  const std::string text = path.string();
  const auto wild = text.find_first_of("*?[");
  if (wild == std::string::npos) {
    // Megatron's shards are named by what their .bin and .idx have in common.
    return fs::exists(path) || fs::exists(text + ".bin");
  }
  return fs::is_directory(fs::path(text.substr(0, wild) + "x").parent_path());
}

void resolve(const RunConfig& config, const std::string& key, std::string& path, const char* expected) {
  if (path.empty()) return;
  const std::string found = absolute_path(config.locate(key), path);
  if (found.empty())
    config.fail(
        key, fmt::format("found '{}', which is neither beside the configuration nor in the current folder, expected {}",
                         path, expected));
  path = found;
}

// "corpora/web.jsonl.zst" -> "web", "books/*.txt" -> "books"
std::string name_of(const SourceOptions& source) {
  fs::path path(source.path());
  while (path.has_parent_path() && path != path.root_path() &&
         (path.filename().empty() || path.filename().string().find_first_of("*?[") != std::string::npos))
    path = path.parent_path();
  const std::string name = path.filename().string();
  const std::string stem = name.substr(0, name.find('.', 1));
  return stem.empty() || stem == "/" ? "source" : stem;
}

std::string identity(const SourceOptions& source) {
  return fmt::format("{}\n{}\n{}\n{}\n{}", source.text, source.jsonl, source.shards,
                     source.jsonl.empty() ? "" : source.field, source.separator);
}

struct Named {
  std::string key;
  SourceOptions* source;
};

// Given names first, so that a derived one makes way.
void name_all(const RunConfig& config, const std::vector<Named>& sources, const char* reserved) {
  std::map<std::string, std::string> owner;  // name -> identity
  if (reserved) owner[reserved] = "";
  for (const auto& [key, source] : sources) {
    if (source->name.empty()) continue;
    const auto [at, fresh] = owner.emplace(source->name, identity(*source));
    if (!fresh && at->second != identity(*source))
      config.fail(key + ".name", fmt::format("found '{}', which another source has already, expected a name of its own",
                                             source->name));
  }
  for (const auto& [key, source] : sources) {
    if (!source->name.empty()) continue;
    const std::string stem = name_of(*source), me = identity(*source);
    std::string name = stem;
    for (int n = 2;; ++n) {
      const auto [at, fresh] = owner.emplace(name, me);
      if (fresh || at->second == me) break;
      name = fmt::format("{}-{}", stem, n);
    }
    source->name = name;
  }
}

void distinct(const RunConfig& config, const std::string& key, const std::vector<SourceOptions>& list) {
  std::set<std::string> seen;
  for (std::size_t i = 0; i < list.size(); ++i)
    if (!seen.insert(list[i].name).second)
      config.fail(
          fmt::format("{}.{}", key, i),
          fmt::format("found the source '{}' a second time, expected it once (its `weight` makes it more frequent)",
                      list[i].name));
}

}  // namespace

std::string absolute_path(const Location& where, const std::string& path) {
  if (fs::path(path).is_absolute()) return path;
  const fs::path beside = fs::absolute(fs::path(where.file).parent_path() / path).lexically_normal();
  if (is_there(beside)) return beside.string();
  const fs::path here = fs::absolute(path).lexically_normal();
  return is_there(here) ? here.string() : "";
}

void resolve_paths(const RunConfig& config, const std::string& prefix, DataOptions& data) {
  for (const char* list : {"train", "validation"}) {
    auto& sources = std::string(list) == "train" ? data.train : data.validation;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const std::string key = fmt::format("{}data.{}.{}.", prefix, list, i);
      if (!kKnownText.contains(sources[i].text))
        resolve(config, key + "text", sources[i].text,
                fmt::format("a file, a folder, a glob or one of {}", fmt::join(kKnownText, ", ")).c_str());
      resolve(config, key + "jsonl", sources[i].jsonl, "a file, a folder or a glob of JSON lines");
      resolve(config, key + "shards", sources[i].shards, "a folder, a file or a glob of token ids");
    }
  }
  if (data.tokenizer.file) resolve(config, prefix + "data.tokenizer.file", *data.tokenizer.file, "a tokenizer.json");
  if (!data.cache.empty()) data.cache = fs::absolute(data.cache).lexically_normal().string();
}

void require_paths(const RunConfig& config) {
  const auto require = [&](const std::string& prefix, const std::string& key, const std::string& path) {
    if (path.empty() || kKnownText.contains(path) || is_there(path)) return;
    config.fail(key_in_stage(config, prefix, key),
                fmt::format("found '{}', where there is nothing, expected what it names to be there", path));
  };
  for (std::size_t i = 0; i < config.stages.size(); ++i) {
    const std::string prefix = config.staged ? fmt::format("stages.{}.", i) : "";
    for (const bool train : {true, false}) {
      const auto& sources = train ? config.stages[i].data.train : config.stages[i].data.validation;
      for (std::size_t s = 0; s < sources.size(); ++s) {
        const std::string key = fmt::format("data.{}.{}.", train ? "train" : "validation", s);
        require(prefix, key + "text", sources[s].text);
        require(prefix, key + "jsonl", sources[s].jsonl);
        require(prefix, key + "shards", sources[s].shards);
      }
    }
  }
  require("", "data.tokenizer.file", config.data.tokenizer.file.value_or(""));
}

void resolve_model_address(RunConfig& config) {
  if (!config.model.from) return;
  std::string& address = *config.model.from;
  // RUN@STEP: only RUN is a path. What is not found stays as it is; the address itself is looked up later.
  const auto whole = absolute_path(config.locate("model.from"), address);  // a folder may have an @ in its name
  const auto at = whole.empty() ? address.rfind('@') : std::string::npos;
  const std::string path = absolute_path(config.locate("model.from"), address.substr(0, at));
  if (!path.empty()) address = path + (at == std::string::npos ? "" : address.substr(at));
}

void resolve_names(RunConfig& config) {
  for (const char* list : {"train", "validation"}) {
    const bool train = std::string(list) == "train";
    std::vector<Named> sources;
    const auto add = [&](const std::string& prefix, DataOptions& data) {
      auto& options = train ? data.train : data.validation;
      for (std::size_t i = 0; i < options.size(); ++i) {
        const std::string own = fmt::format("{}data.{}.{}", prefix, list, i);
        sources.push_back({key_in_stage(config, prefix, own.substr(prefix.size())), &options[i]});
      }
    };
    add("", config.data);
    for (std::size_t i = 0; i < config.stages.size(); ++i) add(fmt::format("stages.{}.", i), config.stages[i].data);
    name_all(config, sources, train || config.data.validation_fraction == 0 ? nullptr : "validation");
    distinct(config, fmt::format("data.{}", list), train ? config.data.train : config.data.validation);
    for (std::size_t i = 0; i < config.stages.size(); ++i) {
      auto& data = config.stages[i].data;
      distinct(config, key_in_stage(config, fmt::format("stages.{}.", i), fmt::format("data.{}", list)),
               train ? data.train : data.validation);
    }
  }
}

}  // namespace cairn::config
