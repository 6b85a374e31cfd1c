// The entries of the module's table that files of their own define.
#pragma once

#include "models/kernels/cuda/table.h"

namespace cairn::kernels::cuda {

void add_sparse(Table& table);   // module_sparse.cpp
void add_experts(Table& table);  // module_experts.cpp
void add_delta(Table& table);    // module_delta.cpp
void add_gates(Table& table);    // module_gates.cpp

}  // namespace cairn::kernels::cuda
