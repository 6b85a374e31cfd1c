// Plain twin of kernels/index_loss.h: ATen alone, any dtype and device. Holds T x T scores.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "models/kernels/index_loss.h"

namespace cairn::kernels::ref {

// p [batch, length, length] of the formula, 0 where a key is no candidate (selected undefined) or is not listed.
at::Tensor index_target(const at::Tensor& selected, const std::vector<MassSource>& sources,
                        const IndexOptions& options);

// KL(p || softmax(I)) of every query, [batch, length], 0 where it has fewer than two candidates. Differentiable in q, k
// and w; p is a constant.
at::Tensor index_kl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                    const std::vector<MassSource>& sources, const IndexOptions& options);

// Twin of kernels::index_loss, gradients by autograd through index_kl.
IndexLoss index_loss(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                     const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient);

// Twin of kernels::selected_mass.
at::Tensor selected_mass(const MassSource& source, const at::Tensor& selected, const IndexOptions& options,
                         int64_t* queries);

}  // namespace cairn::kernels::ref
