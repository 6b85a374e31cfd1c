#include "models/layers/rotate.h"

#include "models/kernels/cuda/table.h"
#include "models/kernels/ref/rope.h"
#include "models/kernels/rope.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Turn : torch::CustomClassHolder {
  Turn(Rotation rotation, int64_t first) : rotation(std::move(rotation)), first(first) {}
  at::Tensor apply(const at::Tensor& x, bool inverse) const {
    const at::Tensor y = x.clone(at::MemoryFormat::Contiguous);
    kernels::rope_(y.narrow(2, first, 2 * rotation.cos.size(1)), rotation.positions, rotation.cos, rotation.sin,
                   rotation.interleaved, inverse);
    return y;
  }
  Rotation rotation;
  int64_t first;
};

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, const c10::intrusive_ptr<Turn>& turn) {
    ctx->saved_data["turn"] = c10::IValue::make_capsule(turn);
    return turn->apply(x, false);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto turn = c10::static_intrusive_pointer_cast<Turn>(ctx->saved_data["turn"].toCapsule());
    return {turn->apply(grads[0], true), at::Tensor()};
  }
};

}  // namespace

at::Tensor rotated(const at::Tensor& x, int64_t first, const Rotation& r, const Pass& pass) {
  const kernels::Way way = pass.way(x);
  if (way == kernels::Way::cpu || (way == kernels::Way::device && !pass.aten && kernels::cuda::available(x)))
    return RotateFunction::apply(x, c10::make_intrusive<Turn>(r, first));
  const int64_t D = x.size(2);
  const at::Tensor turned = kernels::ref::rope(x.narrow(2, first, D - first), r.positions, r.cos, r.sin, r.interleaved);
  return first == 0 ? turned : at::cat({x.narrow(2, 0, first), turned}, 2);
}

}  // namespace cairn::models
