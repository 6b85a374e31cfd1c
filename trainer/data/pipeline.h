// Reading ahead on one thread, tokenising on many, writing in order.
#pragma once

#include <cstdint>

#include "trainer/data/encoding.h"
#include "trainer/data/shard.h"
#include "trainer/data/source.h"

namespace cairn::data {

struct Tokenized {
  int64_t documents = 0, tokens = 0, bytes = 0;  // bytes of text
};

// Tokenises a text source into `writer`; threads 0: all. What is written does not depend on the number of threads, nor
// does the error where there are several: the first document's. Throws std::runtime_error, also where no document has
// text.
Tokenized tokenize(const SourceOptions& source, const Encoding& encoding, int threads, const ProgressCallback& progress,
                   ShardWriter& writer);

}  // namespace cairn::data
