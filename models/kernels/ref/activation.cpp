#include "models/kernels/ref/activation.h"

#include <fmt/format.h>

#include <stdexcept>

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {
namespace {

at::Tensor apply(const at::Tensor& x, Activation kind) {
  switch (kind) {
    case Activation::silu:
      return at::silu(x);
    case Activation::gelu:
      return at::gelu(x);
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::relu:
      return at::relu(x);
    case Activation::relu2:
      return at::relu(x).square();
  }
  throw std::invalid_argument(fmt::format("unknown activation number {}", static_cast<int>(kind)));
}

}  // namespace

at::Tensor activation(const at::Tensor& x, Activation kind) { return apply(wide(x), kind).to(x.scalar_type()); }

at::Tensor gated(const at::Tensor& gate_up, Activation kind) {
  const int64_t F = gate_up.size(-1) / 2;
  const auto x = wide(gate_up);
  return (apply(x.narrow(-1, 0, F), kind) * x.narrow(-1, F, F)).to(gate_up.scalar_type());
}

}  // namespace cairn::kernels::ref
