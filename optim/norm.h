// The norm of a gradient by fixed pieces of its flat index: the same bits for any number of threads and any sharding on
// piece boundaries.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace cairn::optim {

inline constexpr int64_t kPiece = 4096;  // elements; recorded runs depend on it

constexpr int64_t piece_count(int64_t elements) { return (elements + kPiece - 1) / kPiece; }

// flat: contiguous float32 [n]. Writes the sum of squares (in double: 16 virtual lanes, then a fixed tree) of each
// piece to out[0 .. piece_count(n)). A slice of a longer buffer gives that buffer's pieces where it begins on a
// multiple of kPiece and ends on one or at the buffer's end.
void squared_norm_pieces(const at::Tensor& flat, double* out);

// Sum by the binary tree that pairs neighbours: ((0 1)(2 3))((4 5) 6) ...
double tree_sum(const double* values, int64_t count);

// sqrt of the tree sum over all pieces. Not finite exactly where an element is not.
double gradient_norm(const at::Tensor& flat);

// torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1. max_norm 0: no clipping, 1.
double clip_coefficient(double norm, double max_norm);

}  // namespace cairn::optim
