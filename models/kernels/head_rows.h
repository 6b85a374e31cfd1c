// What the operations over the head's logits share: which rows are predicted, and how many of them are held at once.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace cairn::kernels {

// Rows of logits that are held at once, a multiple of 8: MKL's products with a ragged number of rows depend on the
// number of threads. Large enough that the products run at full speed and that the gradient of the weight, which every
// chunk reads and writes once, costs little; small enough to be of no weight beside the model.
int64_t default_chunk_rows(int64_t vocabulary);

// The rows whose target is a token; targets int32 [N], -1 = not predicted. Throws std::invalid_argument naming one
// outside the vocabulary.
std::vector<int64_t> predicted_rows(const at::Tensor& targets, int64_t vocabulary, const char* op);

// matrix[rows[0 ... count)] with `padded` rows, a multiple of 8: a view where that is possible, else a copy in `buffer`
// [>= padded, D], filled up with zeros.
at::Tensor chunk_of(const at::Tensor& matrix, const int64_t* rows, int64_t count, int64_t padded,
                    const at::Tensor& buffer);
inline bool is_view(const int64_t* rows, int64_t count, int64_t padded) {
  return count == padded && rows[count - 1] - rows[0] == count - 1;
}

}  // namespace cairn::kernels
