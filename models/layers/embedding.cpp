#include "models/layers/embedding.h"

#include "models/kernels/aten/dropout.h"
#include "models/kernels/aten/embedding.h"
#include "models/kernels/embedding.h"
#include "models/kernels/ref/dropout.h"
#include "models/kernels/ref/embedding.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& weight, const at::Tensor& ids, double scale,
                          bool device) {
    ctx->save_for_backward({weight, ids});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["device"] = device;
    return device ? kernels::ref::embedding(weight, ids, scale) : kernels::embedding_forward(weight, ids, scale);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    if (saved[0].requires_grad()) {
      const auto add =
          ctx->saved_data["device"].toBool() ? kernels::aten::embedding_backward_ : kernels::embedding_backward_;
      add(saved[0].grad(), grads[0].contiguous(), saved[1], ctx->saved_data["scale"].toDouble());
    }
    return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, double p, int64_t seed, int64_t stream,
                          int64_t first_row) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    ctx->saved_data["stream"] = stream;
    ctx->saved_data["first_row"] = first_row;
    return kernels::dropout(x, p, {static_cast<uint64_t>(seed), static_cast<uint64_t>(stream), first_row});
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const kernels::DropoutKey key{static_cast<uint64_t>(ctx->saved_data["seed"].toInt()),
                                  static_cast<uint64_t>(ctx->saved_data["stream"].toInt()),
                                  ctx->saved_data["first_row"].toInt()};
    return {kernels::dropout(grads[0].contiguous(), ctx->saved_data["p"].toDouble(), key), at::Tensor(), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor embed(const at::Tensor& weight, const at::Tensor& ids, double scale, const Pass& pass) {
  // transformers rounds Gemma's scale to the type of the table.
  if (weight.scalar_type() == at::kBFloat16)
    scale = static_cast<double>(static_cast<float>(at::BFloat16(static_cast<float>(scale))));
  const kernels::Way way = pass.way(weight);
  if (way == kernels::Way::twins) return kernels::ref::embedding(weight, ids, scale);
  return EmbeddingFunction::apply(weight, ids, scale, way == kernels::Way::device);
}

at::Tensor dropout(const at::Tensor& x, int64_t site, const Pass& pass) {
  if (pass.dropout == 0) return x;
  const kernels::DropoutKey key = pass.dropout_key(site);
  const kernels::Way way = pass.way(x);
  if (way == kernels::Way::twins) return kernels::ref::dropout(x, pass.dropout, key);
  if (way == kernels::Way::device)
    return x * kernels::aten::dropout_mask(x.size(0), x.size(1), pass.dropout, key, x.device()).to(x.scalar_type());
  return DropoutFunction::apply(x, pass.dropout, static_cast<int64_t>(key.seed), static_cast<int64_t>(key.stream),
                                key.first_row);
}

}  // namespace cairn::models
