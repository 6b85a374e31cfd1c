// Text -> Cairn shards: what `cairn data prepare` calls and what fills the token cache.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/encoding.h"
#include "trainer/data/source.h"

namespace cairn::data {

struct Prepared {
  std::string source, folder;
  int64_t documents = 0, tokens = 0, bytes = 0;  // bytes: of text
  double seconds = 0;
};

// Tokenises sources on `threads` threads (0: all) and writes a shard for each (shard.h): into `folder` itself for one
// source, into folder/NAME for several. The bytes written do not depend on the number of threads.
// Throws std::invalid_argument for a source that is shards already, std::runtime_error for bad data.
std::vector<Prepared> prepare(const std::vector<SourceOptions>& sources, const Encoding& encoding,
                              const std::string& folder, int threads = 0, const ProgressCallback& progress = {});

// What a path on the command line means: JSON lines where its name has ".jsonl" in it or it is a folder of such files,
// else text. Throws std::invalid_argument for a folder that holds both.
SourceOptions source_of(const std::string& path);

// The documents of a text source in order (to train a tokenizer, say); stops where `take` returns false.
// With held_out > 0 the documents that validation_fraction = held_out holds out are left out.
void read_documents(const SourceOptions& source, double held_out, const std::function<bool(std::string_view)>& take);

// 128-bit digest, hex, of the raw files of a text source; remembered in the cache by path, size and time.
std::string files_digest(const SourceOptions& source, const std::string& cache = "",
                         const ProgressCallback& progress = {});

// ${XDG_CACHE_HOME:-~/.cache}/cairn, or `configured` where it is not empty.
std::string cache_folder(const std::string& configured);

}  // namespace cairn::data
