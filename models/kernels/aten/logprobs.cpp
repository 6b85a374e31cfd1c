#include "models/kernels/aten/logprobs.h"

#include <torch/autograd.h>

#include <vector>

#include "models/kernels/aten/upload.h"
#include "models/kernels/ref/logprobs.h"

namespace cairn::kernels::aten {
namespace {

// Rows of logits at once: 128 MiB of float32 beside their temporaries.
int64_t rows_at_once(const LogprobsOptions& options, int64_t vocabulary) {
  constexpr int64_t kElements = int64_t{32} << 20;
  if (options.chunk_rows > 0) return options.chunk_rows;
  return std::clamp<int64_t>(kElements / vocabulary / 8 * 8, 256, 8192);
}

}  // namespace

Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options) {
  const at::NoGradGuard no_grad;
  const at::Tensor there = upload(targets, hidden.device());
  const int64_t N = hidden.size(0), most = rows_at_once(options, weight.size(0));
  std::vector<at::Tensor> logprobs, entropy, lse;
  for (int64_t begin = 0; begin == 0 || begin < N; begin += most) {
    const int64_t count = std::min(most, N - begin);
    const Logprobs part =
        ref::linear_logprobs(hidden.narrow(0, begin, count), weight, bias, there.narrow(0, begin, count), options);
    logprobs.push_back(part.logprobs), lse.push_back(part.lse);
    if (options.entropy) entropy.push_back(part.entropy);
  }
  Logprobs out{.logprobs = at::cat(logprobs), .lse = at::cat(lse)};
  if (options.entropy) out.entropy = at::cat(entropy);
  return out;
}

at::Tensor linear_logprobs_backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& targets, const LogprobsOptions& options,
                                    const at::Tensor& dlogprobs, const at::Tensor& dentropy, const at::Tensor& dweight,
                                    const at::Tensor& dbias) {
  const at::Device device = hidden.device();
  const at::Tensor there = upload(targets, device), of_logprobs = upload(dlogprobs, device),
                   of_entropy = upload(dentropy, device);
  const int64_t N = hidden.size(0), most = rows_at_once(options, weight.size(0));
  LogprobsOptions wanted = options;
  wanted.entropy = dentropy.defined();
  at::Tensor dhidden = at::empty_like(hidden);
  const at::AutoGradMode differentiated(true);
  const at::Tensor w = weight.detach().requires_grad_(dweight.defined());
  const at::Tensor b = bias.defined() ? bias.detach().requires_grad_(dbias.defined()) : bias;
  for (int64_t begin = 0; begin < N; begin += most) {
    const int64_t count = std::min(most, N - begin);
    const at::Tensor h = hidden.detach().narrow(0, begin, count).requires_grad_(true);
    const Logprobs part = ref::linear_logprobs(h, w, b, there.narrow(0, begin, count), wanted);
    std::vector<at::Tensor> outputs{part.logprobs}, above{of_logprobs.narrow(0, begin, count).to(part.logprobs)};
    if (wanted.entropy)
      outputs.push_back(part.entropy), above.push_back(of_entropy.narrow(0, begin, count).to(part.entropy));
    std::vector<at::Tensor> inputs{h};
    if (dweight.defined()) inputs.push_back(w);
    if (b.defined() && dbias.defined()) inputs.push_back(b);
    const auto gradients = torch::autograd::grad(outputs, inputs, above);
    const at::NoGradGuard no_grad;
    dhidden.narrow(0, begin, count).copy_(gradients[0]);
    if (dweight.defined()) at::Tensor(dweight).add_(gradients[1]);
    if (b.defined() && dbias.defined()) at::Tensor(dbias).add_(gradients.back());
  }
  return dhidden;
}

}  // namespace cairn::kernels::aten
