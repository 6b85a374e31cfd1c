// Token files of other programs, memory-mapped as they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/token_store.h"

namespace cairn::data {

struct ForeignTokens {
  TokenFile ids;
  std::vector<uint64_t> ends;        // of documents, where the format knows them
  std::vector<std::string> stamped;  // the files whose size and time say whether it changed
};

// .npy (NEP 1, versions 1 to 3): an array of integers of any shape, C order, little-endian.
// Throws std::runtime_error with file and offset: damaged header, another kind of array, cut short.
ForeignTokens open_npy(const std::string& path);

// Megatron-LM's indexed dataset (megatron/core/datasets/indexed_dataset.py, "MMIDIDX", version 1): PREFIX.idx and
// PREFIX.bin. Documents are those of the index; tokens are taken as they are, no EOS is added.
ForeignTokens open_megatron(const std::string& prefix);

// Ids and nothing else, as OLMo's .npy files.
ForeignTokens open_memmap(const std::string& path, TokenType type);

// Finds out which of the three `path` is; `dtype` "" unless it is a headerless memmap.
ForeignTokens open_foreign(const std::string& path, const std::string& dtype);

}  // namespace cairn::data
