#include "checkpoints/analysis/diff.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <set>

#include "checkpoints/analysis/elements.h"

namespace cairn::checkpoints {
namespace {

TensorDifference compare_tensors(const std::string& name, const TensorView* a, const TensorView* b) {
  TensorDifference d{.name = name};
  if (a) d.dtype_a = dtype_name(a->dtype), d.shape_a = a->shape;
  if (b) d.dtype_b = dtype_name(b->dtype), d.shape_b = b->shape;
  if (!b) return d.difference = Difference::only_a, d;
  if (!a) return d.difference = Difference::only_b, d;
  if (a->shape != b->shape) return d.difference = Difference::shape, d;
  if (is_floating(a->dtype) && is_floating(b->dtype)) {
    d.pair = pair_statistics(*a, *b);
    d.compared = true;
  }
  const bool bits_differ = a->dtype == b->dtype && std::memcmp(a->data, b->data, a->bytes()) != 0;
  if (a->dtype != b->dtype)
    d.difference = Difference::dtype;
  else if (bits_differ && (!d.compared || d.pair.differing > 0))  // 0 and -0 are equal values
    d.difference = Difference::values;
  return d;
}

// What cannot be compared comes first, then the largest relative change, then the name.
bool before(const TensorDifference& a, const TensorDifference& b) {
  if (a.compared != b.compared) return !a.compared;
  const double x = a.pair.relative(), y = b.pair.relative();
  if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
  if (!std::isnan(x) && x != y) return x > y;
  return a.name < b.name;
}

}  // namespace

const char* difference_name(Difference difference) {
  constexpr const char* kNames[] = {"none", "values", "dtype", "shape", "only in A", "only in B"};
  return kNames[static_cast<int>(difference)];
}

ModelDifference compare(const ModelWeights& a, const ModelWeights& b) {
  std::set<std::string> union_of_names(a.names().begin(), a.names().end());
  union_of_names.insert(b.names().begin(), b.names().end());
  const std::vector<std::string> names(union_of_names.begin(), union_of_names.end());
  ModelDifference result;
  result.tensors.resize(names.size());
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < names.size(); ++i) {
    try {
      const std::string& name = names[i];
      result.tensors[i] =
          compare_tensors(name, a.contains(name) ? &a.get(name) : nullptr, b.contains(name) ? &b.get(name) : nullptr);
      if (a.contains(name)) a.release(name);
      if (b.contains(name)) b.release(name);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  for (const TensorDifference& d : result.tensors) {
    if (d.compared) result.total += d.pair;
    switch (d.difference) {
      case Difference::none:
        ++result.equal;
        break;
      case Difference::values:
        ++result.changed;
        break;
      case Difference::dtype:
        ++result.dtypes;
        break;
      case Difference::shape:
        ++result.shapes;
        break;
      case Difference::only_a:
        ++result.only_a;
        break;
      case Difference::only_b:
        ++result.only_b;
        break;
    }
  }
  std::sort(result.tensors.begin(), result.tensors.end(), before);
  return result;
}

}  // namespace cairn::checkpoints
