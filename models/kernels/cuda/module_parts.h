// The entries of the module's table that files of their own define.
#pragma once

#include "models/kernels/cuda/table.h"

namespace cairn::kernels::cuda {

void add_sparse(Table& table);  // module_sparse.cpp

}  // namespace cairn::kernels::cuda
