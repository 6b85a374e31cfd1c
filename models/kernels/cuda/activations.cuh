// The activations with their slopes (models/kernels/activation.h), float32. Never run on a GPU so far.
#pragma once

#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {

struct Both {
  float value, slope;
};

// Saturates at e^87.33, so that 0 * infinity does not come up below; NaN passes.
__device__ inline float exponential(float x) { return expf(x > 87.33f ? 87.33f : x); }

struct Silu {  // x sigmoid(x)
  static __device__ float value(float x) { return x / (1.0f + exponential(-x)); }
  static __device__ Both both(float x) {
    const float e = exponential(-x), s = 1.0f / (1.0f + e), value = x * s;
    return {value, fmaf(value, e * s, s)};  // s (1 + x (1 - s)); 1 - s = e s does not cancel
  }
};

struct Gelu {  // x Phi(x), Phi the normal distribution
  static __device__ float phi(float x) { return fmaf(erff(x * 0.70710678118654752f), 0.5f, 0.5f); }
  static __device__ float value(float x) { return x * phi(x); }
  static __device__ Both both(float x) {
    const float p = phi(x), density = expf(x * x * -0.5f) * 0.39894228040143268f;
    return {x * p, fmaf(x, density, p)};
  }
};

struct GeluTanh {  // 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  static constexpr float kTwo = 2 * 0.79788456080286536f;
  static __device__ float inner2(float x) { return x * fmaf(x * x, kTwo * 0.044715f, kTwo); }
  static __device__ float value(float x) { return x / (1.0f + exponential(-inner2(x))); }
  static __device__ Both both(float x) {
    const float c = x < -20.0f ? -20.0f : (x > 20.0f ? 20.0f : x);  // where the slope is 0 or 1; keeps x^3 in range
    const float e = exponential(-inner2(c)), s = 1.0f / (1.0f + e);
    const float inner_slope = fmaf(c * c, 3 * kTwo * 0.044715f, kTwo);
    return {x * s, fmaf(c * s * (e * s), inner_slope, s)};
  }
};

struct Relu {
  static __device__ float value(float x) { return x < 0.0f ? 0.0f : x; }
  static __device__ Both both(float x) { return {value(x), x > 0.0f ? 1.0f : 0.0f}; }
};

struct Relu2 {  // max(x, 0)^2
  static __device__ float value(float x) {
    const float r = x < 0.0f ? 0.0f : x;
    return r * r;
  }
  static __device__ Both both(float x) {
    const float r = x < 0.0f ? 0.0f : x;
    return {r * r, r + r};
  }
};

// f(an activation), in the order of enum Activation
template <class F>
void by_kind(int kind, F f) {
  switch (kind) {
    case 0:
      return f(Silu{});
    case 1:
      return f(Gelu{});
    case 2:
      return f(GeluTanh{});
    case 3:
      return f(Relu{});
    case 4:
      return f(Relu2{});
  }
  throw std::invalid_argument("unknown activation number " + std::to_string(kind));
}

}  // namespace cairn::kernels::cuda
