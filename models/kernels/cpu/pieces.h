// How loops over rows are cut: a rule from sizes alone, so that sums do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>

namespace cairn::kernels {

// Below this many elements a loop is not worth waking threads for.
constexpr size_t kParallelElements = 32768;

// Sums over rows (gradients of weights) are taken in at most 64 pieces, each in order, then joined in order.
constexpr size_t piece_count(size_t rows) { return std::clamp<size_t>(rows / 16, 1, 64); }
constexpr size_t piece_begin(size_t piece, size_t pieces, size_t rows) { return piece * rows / pieces; }

// Rows of floats behind two strides: row r begins at data + (r / inner) * outer_stride + (r % inner) * inner_stride.
template <class T>
struct StridedRows {
  T* data = nullptr;
  size_t inner = 1;
  ptrdiff_t outer_stride = 0, inner_stride = 0;

  T* row(size_t r) const {
    return inner == 1 ? data + static_cast<ptrdiff_t>(r) * outer_stride
                      : data + static_cast<ptrdiff_t>(r / inner) * outer_stride +
                            static_cast<ptrdiff_t>(r % inner) * inner_stride;
  }
};

}  // namespace cairn::kernels
