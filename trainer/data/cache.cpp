#include "trainer/data/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "trainer/data/byte_stream.h"
#include "trainer/data/documents.h"
#include "trainer/data/foreign_shards.h"
#include "trainer/data/pipeline.h"
#include "trainer/data/scan.h"
#include "trainer/data/shard.h"

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
std::string hex(const XXH128_hash_t& hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

TokenPart whole_part(const OpenShard& shard) { return {shard.ids, *shard.documents, *shard.facts, shard.masked}; }

TokenPart open_cairn_part(const std::string& folder, const SourceOptions& source, const Encoding& encoding,
                          const std::string& cache, const ProgressCallback& progress) {
  const auto shard = open_shard(folder);
  if (!shard.tokenizer.empty() && !encoding.digest.empty() && shard.tokenizer != encoding.digest) {
    throw std::runtime_error(
        fmt::format("{}/index.json: made with the tokenizer {}, the run uses {}; prepare the data again or "
                    "name that tokenizer",
                    folder, shard.tokenizer, encoding.digest));
  }
  if (shard.documents && shard.facts) return whole_part(shard);
  std::vector<uint64_t> ends;
  if (shard.documents) ends.assign(shard.documents->ends, shard.documents->ends + shard.documents->documents);
  const auto scanned = scan(shard.ids, ends, encoding.eos, {folder + "/tokens.bin", folder + "/index.json"}, cache,
                            source.name, progress);
  return {shard.ids, shard.documents ? *shard.documents : scanned.documents, scanned.facts, shard.masked};
}

// A folder that holds prepared sources (`cairn data prepare A B --out FOLDER`) stands for all of them, by name; any
// other path or glob for what it names.
std::vector<std::string> shard_paths(const std::string& given) {
  if (!fs::is_directory(given) || is_shard(given)) return list_paths(given);
  std::vector<std::string> shards, others;
  for (const auto& entry : fs::directory_iterator(given)) {
    if (!entry.is_directory() || entry.path().filename().native().starts_with('.')) continue;
    (is_shard(entry.path().native()) ? shards : others).push_back(entry.path().native());
  }
  std::sort(shards.begin(), shards.end());
  std::sort(others.begin(), others.end());
  if (shards.empty()) {
    throw std::runtime_error(
        fmt::format("{}: the folder holds no index.json, nor does a folder in it: it is no finished shard; token "
                    "files of other programs are named by a glob ({}/*.npy)",
                    given, given));
  }
  if (!others.empty()) {
    throw std::runtime_error(
        fmt::format("{}: {} is no finished shard (no index.json), though {} and others beside it are: remove it, or "
                    "name the shards one by one (each a source of its own)",
                    given, others.front(), shards.front()));
  }
  return shards;
}

std::shared_ptr<const TokenStore> open_shards(const SourceOptions& source, const Encoding& encoding,
                                              const std::string& cache, const ProgressCallback& progress) {
  std::vector<TokenPart> parts;
  for (const auto& path : shard_paths(source.shards)) {
    if (is_shard(path)) {
      parts.push_back(open_cairn_part(path, source, encoding, cache, progress));
      continue;
    }
    // A glob over a Megatron folder meets both files of a pair.
    if (path != source.shards && path.ends_with(".idx") && fs::exists(path.substr(0, path.size() - 4) + ".bin"))
      continue;
    const auto foreign = open_foreign(path, source.dtype);
    const auto scanned = scan(foreign.ids, foreign.ends, encoding.eos, foreign.stamped, cache, source.name, progress);
    parts.push_back({foreign.ids, scanned.documents, scanned.facts});
  }
  return std::make_shared<TokenStore>(std::move(parts));
}
}  // namespace

std::string cache_folder(const std::string& configured) {
  if (!configured.empty()) return configured;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0')
    return std::string(xdg) + "/cairn";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::string(home) + "/.cache/cairn";
  throw std::runtime_error("no folder for tokenised data: neither XDG_CACHE_HOME nor HOME is set; set data.cache");
}

std::string digest_hex(std::string_view text) { return hex(XXH3_128bits(text.data(), text.size())); }

std::string stamp_key(const FileStamp& file) {
  return fmt::format("{} {} {}\n", fs::absolute(file.path).lexically_normal().native(), file.size, file.mtime_ns);
}

std::string hash_files(const std::vector<FileStamp>& files, const std::string& name, const ProgressCallback& progress) {
  XXH3_state_t* state = XXH3_createState();
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> owner(state, &XXH3_freeState);
  XXH3_128bits_reset(state);
  int64_t total = 0, done = 0;
  for (const auto& file : files) total += file.size;
  ProgressTimer timer(progress);
  for (const auto& file : files) {
    const auto mapped = MappedFile::open(file.path);
    const uint64_t size = mapped->size();
    XXH3_128bits_update(state, &size, sizeof(size));
    for (size_t at = 0; at < size; at += 1 << 24) {
      const size_t count = std::min<size_t>(size - at, 1 << 24);
      XXH3_128bits_update(state, mapped->data() + at, count);
      done += static_cast<int64_t>(count);
      timer.report({name, "hash", done, total, 0, 0});
    }
  }
  return hex(XXH3_128bits_digest(state));
}

std::string files_digest(const SourceOptions& source, const std::string& cache, const ProgressCallback& progress) {
  const auto files = source_files(source);
  std::string key = "files 1\n";
  for (const auto& file : files) key += stamp_key(file);
  const std::string path = fmt::format("{}/files/{}.json", cache_folder(cache), digest_hex(key));
  const CacheLock lock(path);
  if (fs::exists(path)) {
    const auto known = nlohmann::json::parse(read_whole(path), nullptr, false);
    if (known.is_object() && known.contains("digest")) return known["digest"];
  }
  const std::string digest = hash_files(files, source.name.empty() ? default_name(source) : source.name, progress);
  write_whole(path, nlohmann::json{{"digest", digest}, {"first_file", files.front().path}}.dump() + "\n");
  return digest;
}

OpenSource open_source(const SourceOptions& given, const Encoding& encoding, const std::string& cache, int threads,
                       const ProgressCallback& progress) {
  check(given);
  SourceOptions source = given;
  if (source.name.empty()) source.name = default_name(source);
  if (!source.shards.empty()) return {open_shards(source, encoding, cache, progress), ""};

  const std::string digest = files_digest(source, cache, progress);
  const std::string key = fmt::format("tokens 1\n{}\n{}\n{} {}\n{}\n", digest, encoding.digest, encoding.eos,
                                      encoding.vocab_size, document_options(source));
  const std::string folder = fmt::format("{}/tokens/{}", cache_folder(cache), digest_hex(key));
  const CacheLock lock(folder);
  if (is_shard(folder)) {
    try {
      return {std::make_shared<TokenStore>(std::vector<TokenPart>{whole_part(open_shard(folder))}), digest};
    } catch (const std::runtime_error&) {
      fs::remove_all(folder);  // damaged: it is only a cache
    }
  }
  ShardWriter writer(folder, encoding, has_examples(source));
  tokenize(source, encoding, threads, progress, writer);
  writer.finish({{"name", source.name}, {"files_digest", digest}, {"options", document_options(source)}});
  return {std::make_shared<TokenStore>(std::vector<TokenPart>{whole_part(open_shard(folder))}), digest};
}

CacheLock::CacheLock(const std::string& path) {
  const auto above = fs::path(path).parent_path();
  std::error_code error;
  fs::create_directories(above, error);
  if (error)
    throw std::runtime_error(fmt::format("{}: cannot create the folder: {}; set data.cache to one that can be written",
                                         above.native(), error.message()));
  const std::string lock = path + ".lock";
  fd_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) {  // a cache that may only be read serves what it has
    if (fs::exists(path)) return;
    throw std::runtime_error(fmt::format("{}: cannot be written: {}; set data.cache", lock, std::strerror(errno)));
  }
  while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
  }
}
CacheLock::~CacheLock() {
  if (fd_ >= 0) ::close(fd_);
}

void ProgressTimer::report(const Progress& progress) {
  if (!callback_) return;
  const auto now = std::chrono::steady_clock::now();
  if (progress.bytes < progress.total_bytes && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  callback_(progress);
}

}  // namespace cairn::data
