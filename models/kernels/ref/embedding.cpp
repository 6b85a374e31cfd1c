#include "models/kernels/ref/embedding.h"

namespace cairn::kernels::ref {

at::Tensor embedding(const at::Tensor& weight, const at::Tensor& ids, double scale) {
  const auto rows = weight.index_select(0, ids.to(weight.device()));
  return scale == 1.0 ? rows : rows * scale;
}

}  // namespace cairn::kernels::ref
