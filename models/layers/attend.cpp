#include "models/layers/attend.h"

#include "models/kernels/aten/attention.h"
#include "models/kernels/cuda/table.h"
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/sparse_attention.h"
#include "models/kernels/sparse_attention.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Held : torch::CustomClassHolder {
  explicit Held(kernels::AttentionOptions options) : options(std::move(options)) {}
  kernels::AttentionOptions options;
};
c10::intrusive_ptr<Held> held(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Held>(ctx->saved_data["held"].toCapsule());
}

// x [N, K, D] with zero features up to `width`.
at::Tensor padded(const at::Tensor& x, int64_t width) {
  if (x.size(2) == width) return x.contiguous();
  at::Tensor y = at::zeros({x.size(0), x.size(1), width}, x.options());
  y.narrow(2, 0, x.size(2)).copy_(x);
  return y;
}

// The first `width` features of every head of x [N, H W].
at::Tensor narrowed(const at::Tensor& x, int64_t heads, int64_t width) {
  if (x.size(1) == heads * width) return x;
  return x.view({x.size(0), heads, -1}).narrow(2, 0, width).reshape({x.size(0), heads * width});
}

// Whether the hand-written kernels over lists of keys take tensors like these.
bool takes_lists(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Pass& pass) {
  const kernels::Way way = pass.way(q);
  if (way != kernels::Way::device || pass.aten) return way == kernels::Way::cpu;
  return kernels::cuda::takes_rows(q) && kernels::cuda::takes_rows(v) && k.scalar_type() == q.scalar_type() &&
         v.scalar_type() == q.scalar_type();
}

struct DenseFunction : torch::autograd::Function<DenseFunction> {
  static variable_list forward(AutogradContext* ctx, const Variable& q, const Variable& k, const Variable& v,
                               const c10::intrusive_ptr<Held>& held) {
    const int64_t H = q.size(1), width = std::max(q.size(2), v.size(2));
    const at::Tensor qp = padded(q, width), kp = padded(k, width), vp = padded(v, width);
    const auto out = kernels::attention_forward(qp, kp, vp, held->options);
    ctx->save_for_backward({qp, kp, vp, out.out, out.lse});
    ctx->saved_data["held"] = c10::IValue::make_capsule(held);
    ctx->saved_data["D"] = q.size(2);
    ctx->saved_data["E"] = v.size(2);
    ctx->mark_non_differentiable({out.lse});
    return {narrowed(out.out, H, v.size(2)), out.lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const int64_t D = ctx->saved_data["D"].toInt(), E = ctx->saved_data["E"].toInt(), H = q.size(1);
    const at::Tensor dout = padded(grads[0].reshape({q.size(0), H, E}), q.size(2)).view(saved[3].sizes());
    const at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    kernels::attention_backward(dout, q, k, v, saved[3], saved[4], held(ctx)->options, dq, dk, dv);
    return {dq.narrow(2, 0, D), dk.narrow(2, 0, D), dv.narrow(2, 0, E), at::Tensor()};
  }
};

struct SelectedFunction : torch::autograd::Function<SelectedFunction> {
  static variable_list forward(AutogradContext* ctx, const Variable& q, const Variable& k, const Variable& v,
                               const at::Tensor& selected, const c10::intrusive_ptr<Held>& held) {
    const auto out = kernels::sparse_attention_forward(q, k, v, selected, held->options);
    ctx->save_for_backward({q, k, v, selected, out.out, out.lse});
    ctx->saved_data["held"] = c10::IValue::make_capsule(held);
    ctx->mark_non_differentiable({out.lse});
    return {out.out, out.lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()),
                     dv = at::empty(v.sizes(), v.options());
    kernels::sparse_attention_backward(grads[0].contiguous(), q, k, v, saved[4], saved[5], saved[3], held(ctx)->options,
                                       dq, dk, dv);
    return {dq, dk, dv, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const kernels::AttentionOptions& options,
                const Pass& pass, bool with_lse) {
  const kernels::Way way = pass.way(q);
  if (way == kernels::Way::cpu) {
    const auto out = DenseFunction::apply(q, k, v, c10::make_intrusive<Held>(options));
    return {out[0], out[1]};
  }
  Attended result;
  result.out = way == kernels::Way::device ? kernels::aten::attention(q, k, v, options, pass.products)
                                           : kernels::ref::attention(q, k, v, options);
  if (with_lse) {
    at::NoGradGuard no_grad;
    const bool plain = options.window == 0 && options.softcap == 0 && !options.sinks.defined();
    result.lse = way == kernels::Way::device && plain && takes_lists(q, k, k, pass)
                     ? kernels::cuda::table()->attention_lse(q.contiguous(), k, options)
                     : kernels::ref::attention_lse(q, k, options);
  }
  return result;
}

Attended attend_selected(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& selected,
                         const kernels::AttentionOptions& options, const Pass& pass) {
  if (takes_lists(q, k, v, pass)) {
    const auto out = SelectedFunction::apply(q, k, v, selected, c10::make_intrusive<Held>(options));
    return {out[0], out[1]};
  }
  Attended result{kernels::ref::sparse_attention(q, k, v, selected, options), {}};
  if (pass.indexer.train || pass.measured) {
    at::NoGradGuard no_grad;
    result.lse = kernels::ref::sparse_attention_lse(q, k, selected, options);
  }
  return result;
}

at::Tensor attend_rows(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                       const at::Tensor& selected, int64_t length, const kernels::AttentionOptions& options,
                       const Pass& pass) {
  const bool fast = pass.way(q) == kernels::Way::cpu;
  if (selected.defined()) {
    return takes_lists(q, cache_k, cache_v, pass)
               ? kernels::sparse_attention_decode(q.contiguous(), cache_k, cache_v, selected, length, options)
               : kernels::ref::sparse_attention_decode(q, cache_k, cache_v, selected, length, options);
  }
  if (!fast) return kernels::ref::attention_decode(q, cache_k, cache_v, length, options);
  if (cache_v.size(2) == q.size(2)) return kernels::attention_decode(q.contiguous(), cache_k, cache_v, length, options);
  // Values that are the first features of the keys (absorbed latent attention): the whole rows, and less of the result.
  if (cache_v.const_data_ptr() != cache_k.const_data_ptr() || cache_v.size(2) > cache_k.size(2))
    throw std::invalid_argument("attend_rows: values of another width than the keys have to be a part of the keys");
  const at::Tensor out = kernels::attention_decode(q.contiguous(), cache_k, cache_k, length, options);
  return narrowed(out, q.size(1), cache_v.size(2));
}

void append_rows(const at::Tensor& cached, const SequenceCache& sequence, const at::Tensor& rows) {
  const int64_t n = rows.size(0);
  if (sequence.length + n > sequence.capacity) {
    throw std::invalid_argument(fmt::format("key/value cache: {} rows and {} new ones exceed its capacity of {}",
                                            sequence.length, n, sequence.capacity));
  }
  const at::Tensor from = rows.detach();
  if (!kernels::available(cached) || !kernels::available(from)) {
    cached.narrow(0, sequence.length, n).copy_(from);
    return;
  }
  // For a single row two dispatched operators would take longer than the copy.
  const int64_t width = cached.numel() / cached.size(0);
  const at::Tensor plain = from.contiguous();
  std::copy_n(plain.const_data_ptr<float>(), n * width, cached.mutable_data_ptr<float>() + sequence.length * width);
}

}  // namespace cairn::models
