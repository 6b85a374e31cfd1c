#include "trainer/data/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "trainer/data/cache.h"
#include "trainer/data/documents.h"
#include "trainer/data/files.h"
#include "trainer/data/pipeline.h"
#include "trainer/data/shard.h"

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
Prepared prepare_one(SourceOptions source, const Encoding& encoding, const std::string& folder, int threads,
                     const ProgressCallback& progress) {
  const auto start = std::chrono::steady_clock::now();
  if (fs::exists(folder) && !(fs::is_directory(folder) && fs::is_empty(folder))) {
    throw std::invalid_argument(fmt::format("{}: is there already; remove it or name another folder", folder));
  }
  const std::string digest = hash_files(source_files(source), source.name, progress);
  ShardWriter writer(folder, encoding, has_examples(source));
  const auto done = tokenize(source, encoding, threads, progress, writer);
  writer.finish({{"name", source.name}, {"files_digest", digest}, {"options", document_options(source)}});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return {source.name, folder, done.documents, done.tokens, done.bytes, seconds.count()};
}
}  // namespace

std::vector<Prepared> prepare(const std::vector<SourceOptions>& sources, const Encoding& encoding,
                              const std::string& folder, int threads, const ProgressCallback& progress) {
  std::vector<SourceOptions> named;
  std::set<std::string> names;
  for (auto source : sources) {
    check(source);
    if (source.name.empty()) source.name = default_name(source);
    if (!source.shards.empty()) {
      throw std::invalid_argument(fmt::format("data source '{}': {} is tokens already", source.name, source.shards));
    }
    if (!names.insert(source.name).second) {
      throw std::invalid_argument(fmt::format("data source '{}' is named twice; give each a `name`", source.name));
    }
    named.push_back(std::move(source));
  }
  std::vector<Prepared> done;
  for (const auto& source : named) {
    const std::string target = named.size() == 1 ? folder : folder + "/" + source.name;
    done.push_back(prepare_one(source, encoding, target, threads, progress));
  }
  return done;
}

SourceOptions source_of(const std::string& path) {
  bool jsonl = path.find(".jsonl") != std::string::npos;
  if (fs::is_directory(path)) {
    const auto holds = [&](const std::vector<std::string>& endings) {
      return std::any_of(fs::recursive_directory_iterator(path), fs::recursive_directory_iterator(),
                         [&](const auto& e) {
                           const std::string name = e.path().filename().native();
                           return e.is_regular_file() && name.front() != '.' && ends_with_any(name, endings);
                         });
    };
    const bool text = holds(text_endings());
    jsonl = holds(json_endings());
    if (jsonl && text) {
      throw std::invalid_argument(
          fmt::format("{}: the folder holds both text and JSON lines; name them apart, {}/*.txt and {}/*.jsonl say",
                      path, path, path));
    }
  }
  SourceOptions source;
  (jsonl ? source.jsonl : source.text) = path;
  return source;
}

void read_documents(const SourceOptions& source, double fraction, const std::function<bool(std::string_view)>& take) {
  check(source);
  if (!source.shards.empty()) {
    throw std::invalid_argument(
        fmt::format("data source '{}': {} is tokens; there is no text to read", source.name, source.shards));
  }
  DocumentReader reader(source);
  RawDocument raw;
  while (reader.next(raw)) {
    const std::string text = reader.extract(raw);
    if (text.empty() || held_out(document_hash(text), fraction)) continue;
    if (!take(text)) return;
  }
}

}  // namespace cairn::data
