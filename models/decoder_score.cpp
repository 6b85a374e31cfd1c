#include "models/decoder.h"
#include "models/kernels/aten/logprobs.h"
#include "models/kernels/ref/logprobs.h"

namespace cairn::models {

using torch::autograd::variable_list;

TokenScores Decoder::score(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass,
                           kernels::LogprobsOptions options, const TokenLoss& gradients) const {
  const bool differentiated = static_cast<bool>(gradients);
  const at::AutoGradMode grad_mode(differentiated);
  options.softcap = config_.logit_softcap;
  const at::Tensor hidden = this->hidden(ids, pass);
  const kernels::Way way = pass.way(hidden);
  const auto finish = [&](const variable_list& roots, const variable_list& root_gradients) {
    torch::autograd::backward(roots, root_gradients);
    pass.seams->after_backward(-1);
  };
  if (way == kernels::Way::twins) {
    auto operand = [&](const at::Tensor& t) { return t.defined() ? t.to(pass.products) : t; };
    const auto out =
        kernels::ref::linear_logprobs(operand(hidden), operand(head_), operand(head_bias_), targets, options);
    const TokenScores scores{out.logprobs.detach(), out.entropy.defined() ? out.entropy.detach() : at::Tensor()};
    if (!differentiated) return scores;
    const TokenScores above = gradients(scores);
    if (!out.logprobs.requires_grad()) return scores;
    variable_list roots{out.logprobs}, root_gradients{above.logprobs.to(out.logprobs)};
    if (above.entropy.defined()) roots.push_back(out.entropy), root_gradients.push_back(above.entropy.to(out.entropy));
    finish(roots, root_gradients);
    return scores;
  }

  const bool rounded = pass.products != hidden.scalar_type();  // bf16-mixed: the head's operands too
  const bool device = way == kernels::Way::device;
  auto operand = [&](const at::Tensor& t) {
    if (!t.defined() || !rounded) return t.defined() ? t.detach() : t;
    return device ? t.detach().to(pass.products) : t.detach().to(pass.products).to(at::kFloat);
  };
  auto gradient_of = [&](const at::Tensor& t) { return t.defined() && t.requires_grad() ? t.grad() : at::Tensor(); };
  const at::Tensor h = operand(hidden), head = operand(head_), bias = operand(head_bias_);
  const auto out = device ? kernels::aten::linear_logprobs(h, head, bias, targets, options)
                          : kernels::linear_logprobs(h, head, bias, targets, options);
  const TokenScores scores{out.logprobs, out.entropy};
  if (!differentiated) return scores;
  const TokenScores above = gradients(scores);
  const at::Tensor dhidden =
      device ? kernels::aten::linear_logprobs_backward(h, head, bias, targets, options, above.logprobs, above.entropy,
                                                       gradient_of(head_), gradient_of(head_bias_))
             : kernels::linear_logprobs_backward(h, head, bias, targets, options, out, above.logprobs, above.entropy,
                                                 gradient_of(head_), gradient_of(head_bias_));
  if (hidden.requires_grad()) finish({hidden}, {dhidden.to(hidden.scalar_type())});
  return scores;
}

at::Tensor Decoder::log_probabilities(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                                      double temperature) const {
  const at::NoGradGuard no_grad;
  const kernels::LogprobsOptions options{.softcap = config_.logit_softcap, .temperature = temperature};
  const auto operand = [&](const at::Tensor& t) { return t.defined() ? t.detach().to(pass.products) : t; };
  const auto rounded = [&](const at::Tensor& t) { return t.defined() ? operand(t).to(at::kFloat) : t; };
  switch (pass.way(hidden)) {
    case kernels::Way::cpu:
      return kernels::linear_logprobs(rounded(hidden).contiguous(), rounded(head_), rounded(head_bias_), targets,
                                      options)
          .logprobs;
    case kernels::Way::device:
      return kernels::aten::linear_logprobs(operand(hidden), operand(head_), operand(head_bias_), targets, options)
          .logprobs;
    case kernels::Way::twins:
      break;
  }
  return kernels::ref::linear_logprobs(operand(hidden), operand(head_), operand(head_bias_), targets, options).logprobs;
}

}  // namespace cairn::models
