#include "models/kernels/aten/embedding.h"

namespace cairn::kernels::aten {

void embedding_backward_(const at::Tensor& dweight, const at::Tensor& dy, const at::Tensor& ids, double scale) {
  const at::NoGradGuard no_grad;
  const at::Tensor scaled = scale == 1.0 ? dy : dy * scale;
  at::Tensor(dweight).index_add_(0, ids.to(dweight.device(), at::kLong), scaled.to(dweight.scalar_type()));
}

}  // namespace cairn::kernels::aten
