// Linear centred kernel alignment between activations (Kornblith et al. 2019) with the unbiased estimator of HSIC (Song
// et al. 2012, as Nguyen et al. 2021 use it):
//   HSIC(K, L) = [tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀK̃L̃1] / (n(n-3)),   K̃ = XXᵀ with a zero diagonal
//   CKA(X, Y)  = HSIC(K, L) / sqrt(HSIC(K, K) · HSIC(L, L))
// over all n tokens at once: not the mean of estimates over batches. Each term is a sum over tokens of products of
// features, so what is held is [Cx, Cy], and never [n, n].
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace cairn::analysis {

// Sums over the tokens seen so far of one pair of activations, in float64.
class HsicSums {
 public:
  // x [m, Cx] and y [m, Cy]: the same m tokens seen by two layers. Any floating type.
  void add(const at::Tensor& x, const at::Tensor& y);
  // NaN for fewer than four tokens.
  double value() const;

 private:
  int64_t n_ = 0;
  // Means of the first tokens, taken off all: HSIC does not change, and sums of large equal numbers do not cancel.
  at::Tensor x_shift_, y_shift_;
  at::Tensor xy_;                  // Σ x yᵀ [Cx, Cy]
  at::Tensor x_, y_;               // Σ x [Cx], Σ y [Cy]
  at::Tensor xb_, ya_;             // Σ x |y|² [Cx], Σ y |x|² [Cy]
  double a_ = 0, b_ = 0, ab_ = 0;  // Σ |x|², Σ |y|², Σ |x|² |y|²
};

}  // namespace cairn::analysis
