#include "models/kernels/dropout.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_dropout.h"

namespace cairn::kernels {

at::Tensor dropout(const at::Tensor& x, double p, const DropoutKey& key) {
  const char* op = "dropout";
  if (!(p >= 0 && p < 1)) throw std::invalid_argument(fmt::format("[{}] p: {} is not in [0, 1)", op, p));
  if (!x.defined() || x.dim() != 2)
    throw std::invalid_argument(fmt::format("[{}] x: expected [N, D], got {}", op, describe(x)));
  check_floats(x, x.sizes(), op, "x");
  if (p == 0) return x;
  const at::Tensor y = at::empty(x.sizes(), x.options());
  Dropout job;
  job.rows = static_cast<size_t>(x.size(0)), job.columns = static_cast<size_t>(x.size(1));
  job.x = x.const_data_ptr<float>(), job.y = y.mutable_data_ptr<float>();
  job.seed = key.seed, job.stream = key.stream, job.first_row = static_cast<uint64_t>(key.first_row);
  job.threshold = dropout_threshold(p), job.kept = static_cast<float>(1 / (1 - p));
  simd_dropout(job);
  return y;
}

}  // namespace cairn::kernels
