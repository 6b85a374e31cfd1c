// The element-wise passes over flat memory, each in one read and one write of what it touches. Plain pointers: no
// LibTorch here. Every element is computed by the same instructions wherever it lies, so bits depend neither on threads
// nor on how runs are cut. Multiplications and additions are fused where MulAdd is written (AVX2 and AVX-512 alike).
#pragma once

#include <cstdint>
#include <vector>

namespace cairn::optim::kernels {

// A run: n elements that adjoin in all buffers. p is float32, or bfloat16 where `bf16` (held as uint16); m and v are
// the state.
struct Run {
  void* p = nullptr;
  float* g = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  int64_t n = 0;
  float decay = 1.0f;  // adamw: p is multiplied by it first; sgd: weight decay added to the gradient
  bool bf16 = false;
};

struct AdamwScalars {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2, inv_sqrt_correction2, eps, step_size;
  bool clear_grad;
};
// g' = grad_scale g; p = decay p; m += (1 - beta1)(g' - m); v = beta2 v + (1 - beta2) g'^2; p -= step_size m / (sqrt(v)
// / sqrt(1 - beta2^t) + eps) (Loshchilov & Hutter 2019; step_size = lr / (1 - beta1^t)).
void adamw(const Run& run, const AdamwScalars& s);

struct SgdScalars {
  float grad_scale, momentum, lr;
  bool nesterov, clear_grad;
};
// g' = grad_scale g + decay p; m = momentum m + g'; p -= lr (nesterov ? g' + momentum m : m). Without m (nullptr): p -=
// lr g'.
void sgd(const Run& run, const SgdScalars& s);

// m += (1 - momentum)(grad_scale g - m); out = nesterov ? g' + momentum (m - g') : m   (torch.optim.Muon).
void muon_momentum(float* out, const float* g, float* m, int64_t n, float grad_scale, float momentum, bool nesterov);
// p = decay p - lr o
void muon_apply(void* p, bool bf16, const float* o, int64_t n, float decay, float lr);

// e += (1 - decay)(p - e)
void ema(float* e, const void* p, bool bf16, int64_t n, float one_minus_decay);

// Sum of squares of n <= kPiece elements in double: lane i of 16 takes elements i mod 16, the lanes are joined by a
// fixed tree.
double squared_norm(const float* x, int64_t n);

}  // namespace cairn::optim::kernels
