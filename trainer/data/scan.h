// One pass over a token file whose documents, digest or highest id nobody wrote down; remembered in the cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/source.h"
#include "trainer/data/token_store.h"

namespace cairn::data {

struct Scanned {
  DocumentTable documents;
  TokenFacts facts;
};

// `known_ends`: the documents where the format knows them; else a document ends after each `eos` (-1: one document).
// `stamped`: files whose path, size and time, with eos and type, are the key in CACHE/scans.
Scanned scan(const TokenFile& ids, const std::vector<uint64_t>& known_ends, int32_t eos,
             const std::vector<std::string>& stamped, const std::string& cache, const std::string& name,
             const ProgressCallback& progress);

}  // namespace cairn::data
