// Keys and values of many sequences, in pages that sequences may share: what one forward pass sees of them.
#pragma once

#include "models/kernels/paged_attention.h"

namespace cairn::models {

// `starts`: the rows are the beginnings of sequences, packed as in training (Pass::batch, length, segments): they
// attend to one another, and their keys and values go into the pages. Otherwise every row is the newest of a sequence
// of its own, B = Pass::batch rows of length 1, and attends to the pages.
struct PagedCache {
  std::vector<kernels::KeyValuePages> layers;  // one for each block
  int64_t capacity = 0;                        // no sequence is longer
  bool starts = false;
  at::Tensor slots;    // int64 [N] where a row's keys and values go: page * page_size + row in it; -1: nowhere
  at::Tensor table;    // int32 [B, M] pages of each sequence; not read with `starts`
  at::Tensor lengths;  // int32 [B] rows of each sequence, the new one included; 0: a row without a sequence
};

}  // namespace cairn::models
