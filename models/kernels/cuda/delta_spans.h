// How rows are cut into the chunks of the delta rule, on the host.
#pragma once

#include <algorithm>
#include <vector>

#include "models/kernels/cuda/launchers_delta.h"

namespace cairn::kernels::cuda {

struct DeltaSpans {
  std::vector<DeltaSpan> all;  // in order of row
  std::vector<int32_t> first;  // [B + 1] of each sequence
  int64_t states = 0;          // what has a number
};

// Chunks of each document of `rows` rows in `batch` sequences; segment [rows] or null. `carried`: the state that enters
// the first row (number 0) and the one that leaves the last (the last number) are the caller's; one sequence of one
// document then.
inline DeltaSpans delta_spans(int64_t rows, int64_t batch, const int32_t* segment, bool carried) {
  DeltaSpans spans;
  const int64_t length = rows / batch;
  if (carried) spans.states = 1;
  for (int64_t b = 0; b < batch; ++b) {
    spans.first.push_back(static_cast<int32_t>(spans.all.size()));
    const int64_t end = (b + 1) * length;
    for (int64_t row = b * length; row < end;) {
      int64_t document = row + 1;  // where this one ends
      while (document < end && (segment == nullptr || segment[document] == segment[row])) ++document;
      int32_t enters = carried ? 0 : -1;
      for (; row < document; row += kDeltaRows) {
        const bool last = row + kDeltaRows >= document;
        const int32_t leaves = last && !carried ? -1 : static_cast<int32_t>(spans.states++);
        spans.all.push_back(
            {static_cast<int32_t>(row), static_cast<int32_t>(std::min(kDeltaRows, document - row)), enters, leaves});
        enters = leaves;
      }
      row = document;
    }
  }
  spans.first.push_back(static_cast<int32_t>(spans.all.size()));
  return spans;
}

}  // namespace cairn::kernels::cuda
