// Element-wise activations and gated feed-forward units (Shazeer 2020, "GLU variants improve transformer").
#pragma once

#include <ATen/ATen.h>
#include <string>

namespace cairn::kernels {

// Hugging Face's names: silu ("swish"), gelu (erf), gelu_tanh ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), relu,
// relu2 (squared).
enum class Activation { silu, gelu, gelu_tanh, relu, relu2 };

// Throws std::invalid_argument naming the value and the ones there are.
Activation activation_from_name(const std::string& name);
const char* activation_name(Activation kind);  // the Hugging Face name that is written to config.json

// gate_up [N, 2F]: gate in the first F columns, up in the rest. Returns act(gate) * up, [N, F].
at::Tensor gated_forward(const at::Tensor& gate_up, Activation kind);
// dh [N, F] contiguous -> gradient of gate_up [N, 2F], written to `out` where that is defined (it may be gate_up
// itself, which is then lost). gate_up and out may have any row stride.
// With h [N, F] the forward pass's result is written there once more, which may be dh itself: then it need not be kept.
at::Tensor gated_backward(const at::Tensor& dh, const at::Tensor& gate_up, Activation kind, const at::Tensor& out = {},
                          const at::Tensor& h = {});

// x, dy contiguous, any shape.
at::Tensor activation_forward(const at::Tensor& x, Activation kind);
at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& x, Activation kind);

}  // namespace cairn::kernels
