// Two models compared tensor by tensor.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "checkpoints/analysis/statistics.h"
#include "checkpoints/safetensors.h"

namespace cairn::checkpoints {

enum class Difference {
  none,    // equal values of one type
  values,  // some element differs
  dtype,   // other types; the values may or may not be equal
  shape,   // not comparable
  only_a,
  only_b,
};
const char* difference_name(Difference difference);

struct TensorDifference {
  std::string name;
  Difference difference = Difference::none;
  std::string dtype_a, dtype_b;  // empty where the tensor is missing
  std::vector<int64_t> shape_a, shape_b;
  PairStatistics pair;    // where shapes are equal and both are floating
  bool compared = false;  // pair holds
};

struct ModelDifference {
  std::vector<TensorDifference> tensors;  // all of both: largest relative change first, what cannot be compared before
  PairStatistics total;                   // over what was compared
  int64_t only_a = 0, only_b = 0, shapes = 0, dtypes = 0, changed = 0, equal = 0;  // tensors
  bool identical() const { return equal == static_cast<int64_t>(tensors.size()); }
};

/// Tensors that are not floating (masks, counters) are compared bit by bit, without statistics. Uses OpenMP, a tensor a
/// thread; the numbers do not depend on it.
ModelDifference compare(const ModelWeights& a, const ModelWeights& b);

}  // namespace cairn::checkpoints
