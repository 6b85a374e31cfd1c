// Lists of chosen keys (index_topk) as kernels take them: checked once, counted, cut at borders of key blocks.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace cairn::kernels {

struct Selection {
  at::Tensor held;  // contiguous int32 [rows, width]
  const int32_t* data = nullptr;
  int64_t rows = 0, width = 0;
  std::vector<int32_t> count;  // [rows] entries before the first -1

  // [rows, blocks + 1]: entries of each row that stand before positions 0, block_rows, 2 * block_rows, ...
  std::vector<int32_t> splits(int64_t blocks, int64_t block_rows) const;
};

// Row n is a query at position n % length + first_position. Throws std::invalid_argument, naming the row, unless
// `selected` is int32 [rows, S] on the CPU with ascending positions from 0 to the query's own, then -1.
Selection read_selection(const char* what, const at::Tensor& selected, int64_t rows, int64_t length,
                         int64_t first_position);

}  // namespace cairn::kernels
