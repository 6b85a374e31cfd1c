#include "models/kernels/ref/paged_attention.h"

#include "models/kernels/ref/attention.h"

namespace cairn::kernels::ref {

void paged_store(const KeyValuePages& pages, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots) {
  using at::indexing::Slice;
  const int64_t S = pages.page_size(), W = pages.keys.size(4), D = k.size(2);
  const at::Tensor rows = slots.ge(0).nonzero().squeeze(1), used = slots.index_select(0, rows);
  const at::Device device = k.device();
  const at::Tensor page = used.div(S, "floor").to(device), row = used.remainder(S).to(device);
  const at::Tensor picked = rows.to(device);
  at::Tensor keys = pages.keys, values = pages.values.narrow(3, 0, D);
  keys.index_put_({page, Slice(), row.div(W, "floor"), Slice(), row.remainder(W)},
                  k.index_select(0, picked).to(keys.scalar_type()));  // [n, K, D]
  values.index_put_({page, Slice(), row}, v.index_select(0, picked).to(values.scalar_type()));
  if (pages.values.size(3) > D)
    pages.values.narrow(3, D, pages.values.size(3) - D)
        .index_put_({page, Slice(), row}, at::zeros({}, values.options()));
}

at::Tensor paged_attention(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table,
                           const at::Tensor& lengths, const AttentionOptions& options) {
  check_paged(q, pages, table, lengths);
  const int64_t B = q.size(0), H = q.size(1), D = q.size(2), K = pages.keys.size(1), S = pages.page_size();
  std::vector<at::Tensor> out;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t length = lengths.const_data_ptr<int32_t>()[b], count = (length + S - 1) / S;
    if (length == 0) {
      out.push_back(at::zeros({1, H * D}, q.options()));
      continue;
    }
    const at::Tensor index = table.select(0, b).narrow(0, 0, count).to(q.device(), at::kLong);
    const at::Tensor k = pages.keys
                             .index_select(0, index)  // [n, K, S / W, D, W] -> [n S, K, D]
                             .permute({0, 2, 4, 1, 3})
                             .reshape({count * S, K, D}),
                     v = pages.values.index_select(0, index).narrow(3, 0, D).transpose(1, 2).reshape({count * S, K, D});
    out.push_back(ref::attention_decode(q.narrow(0, b, 1), k, v, length, options));
  }
  return at::cat(out);
}

}  // namespace cairn::kernels::ref
