#include "models/kernels/activation.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_activation.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

struct Name {
  const char* name;
  Activation kind;
};

// Names in config.json; the first of a kind is the one that is written. swish is what Keras called silu.
constexpr Name kNames[] = {
    {"silu", Activation::silu},           {"swish", Activation::silu},
    {"gelu", Activation::gelu},           {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"gelu_new", Activation::gelu_tanh},  {"gelu_fast", Activation::gelu_tanh},
    {"gelu_tanh", Activation::gelu_tanh}, {"relu", Activation::relu},
    {"relu2", Activation::relu2},
};

}  // namespace

Activation activation_from_name(const std::string& name) {
  std::string known;
  for (const Name& entry : kNames) {
    if (name == entry.name) return entry.kind;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw std::invalid_argument(fmt::format("unknown activation '{}' (known: {})", name, known));
}

const char* activation_name(Activation kind) {
  for (const Name& entry : kNames) {
    if (kind == entry.kind) return entry.name;
  }
  throw std::invalid_argument(fmt::format("unknown activation number {}", static_cast<int>(kind)));
}

namespace {

Gated gated_job(const at::Tensor& gate_up, const char* op) {
  const auto rows = strided_rows<const float>(gate_up, op, "gate_up");
  if (gate_up.dim() != 2 || gate_up.size(1) % 2 != 0) {
    throw std::invalid_argument(fmt::format("[{}] gate_up: expected [N, 2F], got {}", op, describe(gate_up)));
  }
  Gated job;
  job.rows = static_cast<size_t>(gate_up.size(0)), job.columns = static_cast<size_t>(gate_up.size(1) / 2);
  job.gate_up = rows.data, job.gate_up_stride = rows.outer_stride;
  return job;
}

}  // namespace

at::Tensor gated_forward(const at::Tensor& gate_up, Activation kind) {
  if (cuda::available(gate_up)) return cuda::table()->gated_forward(gate_up, kind);
  Gated job = gated_job(gate_up, "gated_forward");
  const at::Tensor h = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  job.out = h.mutable_data_ptr<float>(), job.out_stride = h.size(1);
  simd_gated(job, static_cast<int>(kind));
  return h;
}

at::Tensor gated_backward(const at::Tensor& dh, const at::Tensor& gate_up, Activation kind, const at::Tensor& out,
                          const at::Tensor& h) {
  if (cuda::available(gate_up)) {
    // h may be dh, and out gate_up: the hidden values are taken first and written last.
    const at::Tensor hidden = h.defined() ? cuda::table()->gated_forward(gate_up, kind) : at::Tensor();
    const at::Tensor dgate_up = cuda::table()->gated_backward(dh, gate_up, kind, out);
    if (h.defined()) at::Tensor(h).copy_(hidden);
    return dgate_up;
  }
  const char* op = "gated_backward";
  Gated job = gated_job(gate_up, op);
  check_floats(dh, {gate_up.size(0), gate_up.size(1) / 2}, op, "dh");
  const at::Tensor result = out.defined() ? out : at::empty(gate_up.sizes(), gate_up.options());
  const auto rows = strided_rows<float>(result, op, "out");
  if (result.sizes() != gate_up.sizes()) {
    throw std::invalid_argument(
        fmt::format("[{}] out: expected the shape of gate_up, {}, got {}", op, gate_up.sizes().vec(), describe(out)));
  }
  job.dh = dh.const_data_ptr<float>();
  job.out = rows.data, job.out_stride = rows.outer_stride;
  if (h.defined()) {
    check_floats(h, dh.sizes(), op, "h");
    job.h = h.mutable_data_ptr<float>();
  }
  simd_gated(job, static_cast<int>(kind));
  return result;
}

at::Tensor activation_forward(const at::Tensor& x, Activation kind) {
  if (cuda::available(x)) return cuda::table()->activation_forward(x, kind);
  check_floats(x, x.sizes(), "activation_forward", "x");
  const at::Tensor y = at::empty(x.sizes(), x.options());
  simd_activation(x.const_data_ptr<float>(), nullptr, y.mutable_data_ptr<float>(), static_cast<size_t>(x.numel()),
                  static_cast<int>(kind));
  return y;
}

at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& x, Activation kind) {
  if (cuda::available(x)) return cuda::table()->activation_backward(dy, x, kind);
  check_floats(x, x.sizes(), "activation_backward", "x");
  check_floats(dy, x.sizes(), "activation_backward", "dy");
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  simd_activation(x.const_data_ptr<float>(), dy.const_data_ptr<float>(), dx.mutable_data_ptr<float>(),
                  static_cast<size_t>(x.numel()), static_cast<int>(kind));
  return dx;
}

}  // namespace cairn::kernels
