#include "models/kernels/attention.h"

#include <torch/csrc/autograd/autograd.h>

#include "models/kernels/ref/attention.h"

namespace cairn::kernels {

AttentionOutput attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttentionOptions& options) {
  return {ref::attention(q, k, v, options), ref::attention_lse(q, k, options)};
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& out, const at::Tensor& lse, const AttentionOptions& options,
                        const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv) {
  at::AutoGradMode on(true);
  std::vector<at::Tensor> in{q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()};
  const auto grads = torch::autograd::grad({ref::attention(in[0], in[1], in[2], options)}, in, {dout});
  dq.copy_(grads[0]), dk.copy_(grads[1]), dv.copy_(grads[2]);
}

at::Tensor attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v, int64_t length,
                            const AttentionOptions& options) {
  return ref::attention_decode(q, cache_k, cache_v, length, options);
}

}  // namespace cairn::kernels
