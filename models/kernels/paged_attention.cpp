#include "models/kernels/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "models/kernels/available.h"
#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_paged_attention.h"

namespace cairn::kernels {
namespace {

void check_pages(const char* op, const KeyValuePages& pages, int64_t dim) {
  const at::Tensor &keys = pages.keys, &values = pages.values;
  const auto fail = [&] {
    throw std::invalid_argument(
        fmt::format("[{}] pages: expected contiguous keys [pages, K, S / W, {}, W] and values [pages, K, S, {}] of one "
                    "type and device, got {} and {}",
                    op, dim, (dim + 15) / 16 * 16, describe(keys), describe(values)));
  };
  if (!keys.defined() || !values.defined() || keys.dim() != 5 || values.dim() != 4) fail();
  const int64_t S = values.size(2), W = std::min(S, kKeyTile);
  if (keys.sizes() != at::IntArrayRef{values.size(0), values.size(1), S / W, dim, W} ||
      values.size(3) != (dim + 15) / 16 * 16 || !keys.is_contiguous() || !values.is_contiguous() ||
      keys.scalar_type() != values.scalar_type() || keys.device() != values.device())
    fail();
}

}  // namespace

KeyValuePages make_pages(int64_t pages, int64_t kv_heads, int64_t dim, int64_t page_size,
                         const at::TensorOptions& options) {
  if (page_size != 16 && page_size != 32 && (page_size < 64 || page_size % 64 != 0))
    throw std::invalid_argument(
        fmt::format("page_size: found {}, expected 16, 32 or a multiple of {}", page_size, kKeyTile));
  const int64_t width = std::min(page_size, kKeyTile);
  return {at::empty({pages, kv_heads, page_size / width, dim, width}, options),
          at::empty({pages, kv_heads, page_size, (dim + 15) / 16 * 16}, options)};
}

void paged_store(const KeyValuePages& pages, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots) {
  const char* op = "paged_store";
  const int64_t N = k.size(0), K = k.size(1), D = k.size(2), S = pages.page_size();
  check_pages(op, pages, D);
  check_tensor(slots, at::kLong, {N}, op, "slots");
  if (!available(k) || !available(v) || !available(pages.keys) || k.sizes() != v.sizes() || K != pages.keys.size(1) ||
      (D > 1 && (k.stride(2) != 1 || v.stride(2) != 1)) || (K > 1 && (k.stride(1) != D || v.stride(1) != D)))
    throw std::invalid_argument(fmt::format("[{}] k, v: expected float32 rows [N, {}, {}] on the CPU, got {} and {}",
                                            op, pages.keys.size(1), pages.keys.size(3), describe(k), describe(v)));
  const int64_t P = pages.values.size(3), W = std::min(S, kKeyTile), count = pages.keys.size(0) * S;
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < N; ++n) {
    if (slot[n] < -1 || slot[n] >= count)
      throw std::invalid_argument(
          fmt::format("[{}] slots[{}] is {}, expected -1 or less than {}", op, n, slot[n], count));
  }
  const float *from_k = k.const_data_ptr<float>(), *from_v = v.const_data_ptr<float>();
  float *keys = pages.keys.mutable_data_ptr<float>(), *values = pages.values.mutable_data_ptr<float>();
  const int64_t k_stride = k.stride(0), v_stride = v.stride(0);
#pragma omp parallel for schedule(static) if (N * K * D > 16384)
  for (int64_t n = 0; n < N; ++n) {
    if (slot[n] < 0) continue;
    const int64_t page = slot[n] / S, row = slot[n] % S;
    for (int64_t h = 0; h < K; ++h) {
      float* key = keys + (page * K + h) * S * D + row / W * D * W + row % W;
      for (int64_t c = 0; c < D; ++c) key[c * W] = from_k[n * k_stride + h * D + c];
      float* value = values + ((page * K + h) * S + row) * P;
      std::copy_n(from_v + n * v_stride + h * D, D, value);
      std::fill(value + D, value + P, 0.0f);
    }
  }
}

void check_paged(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table, const at::Tensor& lengths) {
  const char* op = "paged_attention";
  if (!q.defined() || q.dim() != 3)
    throw std::invalid_argument(fmt::format("[{}] q: expected [B, H, D], got {}", op, describe(q)));
  check_pages(op, pages, q.size(2));
  const int64_t B = q.size(0), K = pages.keys.size(1), S = pages.page_size(), count = pages.keys.size(0);
  if (K == 0 || q.size(1) % K != 0)
    throw std::invalid_argument(fmt::format("[{}] {} kv heads do not divide {} heads", op, K, q.size(1)));
  if (!table.defined() || table.dim() != 2)
    throw std::invalid_argument(fmt::format("[{}] table: expected [B, M], got {}", op, describe(table)));
  check_tensor(table, at::kInt, {B, table.size(1)}, op, "table");
  check_tensor(lengths, at::kInt, {B}, op, "lengths");
  const int64_t M = table.size(1);
  const int32_t *page = table.const_data_ptr<int32_t>(), *length = lengths.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < B; ++b) {
    if (length[b] < 0 || length[b] > M * S)
      throw std::invalid_argument(
          fmt::format("[{}] lengths[{}] is {}, expected 0 to {}: {} pages of {}", op, b, length[b], M * S, M, S));
    for (int64_t i = 0; i * S < length[b]; ++i) {
      if (page[b * M + i] < 0 || page[b * M + i] >= count)
        throw std::invalid_argument(
            fmt::format("[{}] table[{}][{}] is {}, expected a page below {}", op, b, i, page[b * M + i], count));
    }
  }
}

at::Tensor paged_attention(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table,
                           const at::Tensor& lengths, const AttentionOptions& options) {
  check_paged(q, pages, table, lengths);
  const int64_t B = q.size(0), H = q.size(1), D = q.size(2), K = pages.keys.size(1), M = table.size(1);
  if (!available(q) || !available(pages.keys) || (D > 1 && q.stride(2) != 1) || (H > 1 && q.stride(1) != D))
    throw std::invalid_argument(
        fmt::format("[paged_attention] expected float32 rows [B, H, D] on the CPU, got {}", describe(q)));
  AttentionCall call;
  call.heads = H, call.kv_heads = K, call.dim = D, call.padded = pages.values.size(3);
  // As in attention.cpp: the same bits.
  const double log2e = std::numbers::log2e;
  call.q_scale = static_cast<float>(options.softcap > 0 ? options.scale / options.softcap : options.scale * log2e);
  call.cap = static_cast<float>(options.softcap * log2e);
  std::vector<float> sinks;
  if (options.sinks.defined()) {
    check_floats(options.sinks, {H}, "paged_attention", "sinks");
    for (int64_t h = 0; h < H; ++h)
      sinks.push_back(options.sinks.const_data_ptr<float>()[h] * static_cast<float>(log2e));
  }
  at::Tensor out = at::empty({B, H * D}, q.options());
  const int64_t group = H / K, parts = (group + kDecodeRows - 1) / kDecodeRows, tasks = K * parts * B;
  const float* from = q.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int32_t *length = lengths.const_data_ptr<int32_t>(), *pages_of = table.const_data_ptr<int32_t>();
  const int64_t q_stride = q.stride(0), key_head = pages.page_size() * D, value_head = pages.page_size() * call.padded,
                longest = *std::max_element(length, length + B);
  const float *keys = pages.keys.const_data_ptr<float>(), *values = pages.values.const_data_ptr<float>();
  // Head by head, so that sequences that share pages read them one after another: from the cache.
#pragma omp parallel if (B * H * D * longest > 32768)
  {
    std::vector<float> packed(D * kKeyTile);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t b = task % B, head = task / B / parts, line0 = task / B % parts * kDecodeRows,
                    rows = std::min(kDecodeRows, group - line0), h0 = head * group + line0;
      if (length[b] == 0) {
        std::fill_n(to + (b * H + h0) * D, rows * D, 0.0f);
        continue;
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < D; ++c) packed[c * kKeyTile + r] = from[b * q_stride + (h0 + r) * D + c] * call.q_scale;
      }
      PagedHead one;
      one.q = packed.data(), one.rows = rows;
      one.keys = keys + head * key_head, one.values = values + head * value_head;
      one.key_page = K * key_head, one.value_page = K * value_head;
      one.page_size = pages.page_size(), one.table = pages_of + b * M;
      one.length = length[b], one.first = options.window > 0 ? std::max<int64_t>(0, length[b] - options.window) : 0;
      one.sink = sinks.empty() ? nullptr : sinks.data() + h0;
      one.out = to + (b * H + h0) * D;
      paged_attention_head(call, one);
    }
  }
  return out;
}

}  // namespace cairn::kernels
