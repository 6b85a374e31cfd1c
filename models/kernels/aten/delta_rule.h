// The gated delta rule in chunks through LibTorch's operators: what tensors on a GPU and types other than float32 take.
// Differentiable once.
//
// Never run on a GPU so far; tests/models/delta_rule_test.cpp holds it against the plain twin on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/delta_rule.h"

namespace cairn::kernels::aten {

// As ref::delta_rule without a state: computes in float32 at least, returns [N, Hv * Dv] in the dtype of v. Chunks of
// 64 rows are counted from the start of the sequence; where documents meet inside one, scores across are masked.
at::Tensor delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                      const at::Tensor& beta, const DeltaRuleOptions& options);

}  // namespace cairn::kernels::aten
