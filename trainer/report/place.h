// Where a measured thing stands in the model, by its name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cairn::report {

// Where a name stands in the model: "model.layers.3.self_attn.q_proj.weight" is layer 3 of part "self_attn.q_proj",
// "layer.3.head.1" layer 3, index 1 of part "head".
struct Place {
  int64_t layer = -1;          // -1: no layer, a number of the whole model
  std::vector<int64_t> index;  // further numbers of the name: heads, experts
  std::string part;            // "" for a layer as a whole
};
Place place_of(const std::string& name);

}  // namespace cairn::report
