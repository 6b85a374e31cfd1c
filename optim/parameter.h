// What an optimizer sees of a model: named tensors, their gradients, and what each is for.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <string_view>

namespace cairn::optim {

// What the optimizer may do with a parameter; filled by the trainer.
enum class Role { matrix, embedding, head, norm, bias, other };

const char* role_name(Role role);            // "matrix", ...: the names of OptimizerOptions::decay_roles
Role role_from_name(std::string_view name);  // throws std::invalid_argument naming the value and the ones there are

// tensor: contiguous, float32 or bfloat16. grad: contiguous float32 of the same number of elements.
// Both may be slices of flat buffers, and with ZeRO a slice of a parameter (an element-wise optimizer does not care;
// Muon needs whole matrices).
struct Parameter {
  std::string name;
  at::Tensor tensor;
  at::Tensor grad;
  Role role = Role::other;
};

}  // namespace cairn::optim
