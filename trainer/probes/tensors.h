// A model's weights as measurements name them, and a model of its own for passes that need gradients.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "models/decoder.h"

namespace cairn {

// Stretches of the flat buffer of weights, or of gradients, that have a name: "" is all of it, "layer.3" a block, else
// a tensor on disk (of which several parameters may be parts).
struct NamedWeights {
  std::string name;
  std::vector<std::pair<int64_t, int64_t>> stretches;  // offset, length
};
// All, the blocks in order, the tensors in the order of the disk.
std::vector<NamedWeights> named_weights(const models::Decoder& model);

// Sum of squares and dot product over the stretches, in double. Flat buffers of any floating type.
double squared_norm(const at::Tensor& flat, const NamedWeights& weights);
double dot(const at::Tensor& a, const at::Tensor& b, const NamedWeights& weights);

// A decoder like `model` with its weights, kept in `copy` from call to call. Neither the run's gradients nor its graph
// see what is done with it.
models::Decoder& refresh(std::unique_ptr<models::Decoder>& copy, const models::Decoder& model, at::ScalarType dtype);

}  // namespace cairn
