// The half of a block that mixes positions: attention in its forms, linear attention.
#pragma once

#include "models/kernels/key_value_pages.h"
#include "models/layers/pass.h"

namespace cairn::models {

class Mixer {
 public:
  virtual ~Mixer() = default;
  // x [N, C], already normalised -> [N, C]. With pass.cache the rows follow those that are in it; the caller moves its
  // length on.
  virtual at::Tensor forward(const at::Tensor& x, const Pass& pass) const = 0;
  // For one sequence of at most `capacity` rows; `options`: type and device of the weights.
  virtual LayerCache make_cache(int64_t capacity, const at::TensorOptions& options) const = 0;
  // Pages for many sequences (Pass::paged); undefined tensors: this mixer cannot.
  virtual kernels::KeyValuePages make_pages(int64_t pages, int64_t page_size, const at::TensorOptions& options) const {
    return {};
  }
};

}  // namespace cairn::models
