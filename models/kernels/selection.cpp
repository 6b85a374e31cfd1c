#include "models/kernels/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "models/kernels/check.h"

namespace cairn::kernels {

std::vector<int32_t> Selection::splits(int64_t blocks, int64_t block_rows) const {
  std::vector<int32_t> borders(rows * (blocks + 1));
#pragma omp parallel for schedule(static) if (rows * width > 65536)
  for (int64_t n = 0; n < rows; ++n) {
    const int32_t *from = data + n * width, *end = from + count[n];
    int32_t* to = borders.data() + n * (blocks + 1);
    for (int64_t b = 0; b <= blocks; ++b)
      to[b] = static_cast<int32_t>(std::lower_bound(from + (b > 0 ? to[b - 1] : 0), end, b * block_rows) - from);
  }
  return borders;
}

Selection read_selection(const char* what, const at::Tensor& selected, int64_t rows, int64_t length,
                         int64_t first_position) {
  if (!selected.defined() || !selected.is_cpu() || selected.scalar_type() != at::kInt || selected.dim() != 2 ||
      selected.size(0) != rows) {
    throw std::invalid_argument(
        fmt::format("{}: selected: expected int32 [{}, S] on the CPU, got {}", what, rows, describe(selected)));
  }
  Selection s;
  s.held = selected.contiguous();
  s.data = s.held.const_data_ptr<int32_t>();
  s.rows = rows, s.width = selected.size(1);
  s.count.resize(rows);
  int64_t wrong = rows;  // the first row that does not fit
#pragma omp parallel for schedule(static) reduction(min : wrong) if (rows * s.width > 65536)
  for (int64_t n = 0; n < rows; ++n) {
    const int32_t* from = s.data + n * s.width;
    const int64_t t = n % length + first_position;
    int64_t count = s.width;
    while (count > 0 && from[count - 1] == -1) --count;
    bool good = count == 0 || (from[0] >= 0 && from[count - 1] <= t);
    for (int64_t i = 1; i < count; ++i) good &= from[i - 1] < from[i];
    if (!good) wrong = std::min(wrong, n);
    s.count[n] = static_cast<int32_t>(count);
  }
  if (wrong < rows) {
    throw std::invalid_argument(
        fmt::format("{}: selected: row {} (position {}) is not a list of ascending positions up to its own, then -1",
                    what, wrong, wrong % length + first_position));
  }
  return s;
}

}  // namespace cairn::kernels
