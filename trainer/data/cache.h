// The cache of tokenised sources, and opening a source through it. CACHE (prepare.h: cache_folder) holds
//   files/KEY.json    KEY of path, size, time of the raw files -> digest of their bytes, so that a start hashes nothing
//   again tokens/KEY/       a shard (shard.h); KEY of that digest, the tokenizer's, and what documents depend on
//   (field, separator) scans/KEY/        what one pass over a foreign token file found (scan.h)
//   tokenizers/KEY/   a tokenizer that was trained here (trained_tokenizer.h)
// Entries appear whole; a lock makes processes that want the same entry wait for the one that makes it. A folder that
// is deleted is made again. NOTE: a raw file that changes and keeps path, size and time goes unnoticed until
// Dataset::verify.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "trainer/data/encoding.h"
#include "trainer/data/files.h"
#include "trainer/data/prepare.h"
#include "trainer/data/source.h"
#include "trainer/data/token_store.h"

namespace cairn::data {

struct OpenSource {
  std::shared_ptr<const TokenStore> tokens;
  std::string files_digest;  // text alone
};

// Maps the source's tokens, after tokenising or scanning what the cache lacks. Throws as Dataset does.
OpenSource open_source(const SourceOptions& source, const Encoding& encoding, const std::string& cache, int threads,
                       const ProgressCallback& progress);

// 128-bit XXH3, hex: of the bytes of all files, one after another with their sizes.
std::string hash_files(const std::vector<FileStamp>& files, const std::string& name, const ProgressCallback& progress);

std::string digest_hex(std::string_view text);
std::string stamp_key(const FileStamp& file);  // absolute path, size, time; a line

// Holds PATH.lock of a cache entry, for other processes; makes the folder above.
class CacheLock {
 public:
  explicit CacheLock(const std::string& path);
  ~CacheLock();
  CacheLock(const CacheLock&) = delete;
  CacheLock& operator=(const CacheLock&) = delete;

 private:
  int fd_ = -1;
};

// Calls back at most ten times a second, and at the end.
class ProgressTimer {
 public:
  explicit ProgressTimer(const ProgressCallback& callback) : callback_(callback) {}
  void report(const Progress& progress);

 private:
  const ProgressCallback& callback_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace cairn::data
