#include "models/kernels/embedding.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_embedding.h"

namespace cairn::kernels {
namespace {

// `table` is [V, D]; throws unless every id names one of its rows.
void check_ids(const at::Tensor& table, const at::Tensor& ids, const char* op, const char* table_name) {
  if (!table.defined() || table.dim() != 2) {
    throw std::invalid_argument(fmt::format("[{}] {}: expected [V, D], got {}", op, table_name, describe(table)));
  }
  check_floats(table, table.sizes(), op, table_name);
  check_tensor(ids, at::kInt, {ids.defined() ? ids.numel() : 0}, op, "ids");
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < ids.numel(); ++n) {
    if (id[n] < 0 || id[n] >= table.size(0)) {
      throw std::invalid_argument(
          fmt::format("[{}] ids[{}] is {}, outside the vocabulary of {}", op, n, id[n], table.size(0)));
    }
  }
}

}  // namespace

at::Tensor embedding_forward(const at::Tensor& weight, const at::Tensor& ids, double scale) {
  check_ids(weight, ids, "embedding_forward", "weight");
  const at::Tensor out = at::empty({ids.numel(), weight.size(1)}, weight.options());  // [N, D]
  simd_gather_rows(weight.const_data_ptr<float>(), ids.const_data_ptr<int32_t>(), static_cast<size_t>(ids.numel()),
                   static_cast<size_t>(weight.size(1)), static_cast<float>(scale), out.mutable_data_ptr<float>());
  return out;
}

void embedding_backward_(const at::Tensor& dweight, const at::Tensor& dy, const at::Tensor& ids, double scale) {
  check_ids(dweight, ids, "embedding_backward_", "dweight");
  check_floats(dy, {ids.numel(), dweight.size(1)}, "embedding_backward_", "dy");
  simd_scatter_add_rows(dy.const_data_ptr<float>(), ids.const_data_ptr<int32_t>(), static_cast<size_t>(ids.numel()),
                        static_cast<size_t>(dweight.size(1)), static_cast<float>(scale),
                        dweight.mutable_data_ptr<float>());
}

}  // namespace cairn::kernels
