#include "models/kernels/index_topk.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "models/kernels/available.h"
#include "models/kernels/candidates.h"
#include "models/kernels/cpu/simd_index_topk.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

void check(const char* what, const at::Tensor& q, const at::Tensor& k, const at::Tensor& w,
           const IndexOptions& options) {
  const auto fail = [&](const std::string& why) {
    throw std::invalid_argument(
        fmt::format("{}: {}; q {}, k {}, w {}: expected float32 CPU tensors q [N, J, D], k [N, D], w [N, J], the last "
                    "dimension contiguous",
                    what, why, fmt::join(q.sizes(), "x"), fmt::join(k.sizes(), "x"), fmt::join(w.sizes(), "x")));
  };
  for (const auto* x : {&q, &k, &w}) {
    if (!available(*x)) fail("not float32 on the CPU");
    if (x->size(-1) > 1 && x->stride(-1) != 1) fail("last dimension is strided");
  }
  if (q.dim() != 3 || k.dim() != 2 || w.dim() != 2) fail("dimensions are missing");
  if (q.size(1) > 1 && q.stride(1) != q.size(2)) fail("heads do not follow one another");
  if (q.size(0) != w.size(0) || q.size(1) != w.size(1) || q.size(2) != k.size(1)) fail("shapes differ");
  if (options.topk < 1) fail(fmt::format("topk is {}, expected 1 or more", options.topk));
  if (options.sinks < 0 || options.window < 0 || options.sinks + options.window > options.topk)
    fail(fmt::format("{} sinks and a window of {} do not fit into topk {}", options.sinks, options.window,
                     options.topk));
}

// Transposed tiles [dim, 64] of `sequences` times `length` rows.
at::Tensor packed_keys(const at::Tensor& k, int64_t sequences, int64_t length) {
  const int64_t tiles = (length + kKeyTile - 1) / kKeyTile, dim = k.size(1);
  const auto packed = at::empty({sequences, tiles, dim, kKeyTile}, k.options());
  const float* from = k.const_data_ptr<float>();
  const int64_t stride = k.stride(0);
  float* to = packed.data_ptr<float>();
#pragma omp parallel for schedule(static) if (sequences * tiles * dim > 512)
  for (int64_t task = 0; task < sequences * tiles; ++task) {
    const int64_t begin = task % tiles * kKeyTile, row = task / tiles * length + begin;
    attention_pack({from + row * stride, stride}, std::min(kKeyTile, length - begin), dim, 0, 1.0f, nullptr,
                   to + task * dim * kKeyTile);
  }
  return packed;
}

IndexCall call_of(const at::Tensor& q, const at::Tensor& w, const IndexOptions& options, int64_t length) {
  IndexCall call;
  call.heads = q.size(1), call.dim = q.size(2);
  call.topk = options.topk, call.sinks = options.sinks, call.window = options.window;
  call.width = std::min(options.topk, length);
  call.q = q.const_data_ptr<float>(), call.w = w.const_data_ptr<float>();
  call.q_stride = q.stride(0), call.w_stride = w.stride(0);
  return call;
}

}  // namespace

at::Tensor index_topk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options) {
  if (cuda::available(q)) return cuda::table()->index_topk(q, k, w, options);
  check("index_topk", q, k, w, options);
  const int64_t rows = q.size(0), batch = options.batch, length = rows / batch;
  if (k.size(0) != rows || length * batch != rows)
    throw std::invalid_argument(
        fmt::format("index_topk: {} queries, {} keys, {} sequences do not fit", rows, k.size(0), batch));
  const IndexCall all = call_of(q, w, options, length);
  const auto chosen = at::empty({rows, all.width}, q.options().dtype(at::kInt));
  const auto keys = packed_keys(k, batch, length);
  const auto start = segment_starts(rows, batch, options.segments);
  const float* tiles = keys.const_data_ptr<float>();
  int32_t* to = chosen.data_ptr<int32_t>();
  const int64_t blocks = (length + kIndexRows - 1) / kIndexRows, tile_size = keys.stride(0);
  // The last rows of a sequence have the most to do: they go first.
#pragma omp parallel for schedule(dynamic, 1) if (rows * all.heads * all.dim > 4096)
  for (int64_t task = 0; task < batch * blocks; ++task) {
    const int64_t sequence = task % batch, row0 = sequence * length, begin = (blocks - 1 - task / batch) * kIndexRows;
    IndexCall call = all;
    call.keys = tiles + sequence * tile_size;
    call.q += row0 * call.q_stride, call.w += row0 * call.w_stride;
    call.start = start.data() + row0;
    call.chosen = to + row0 * call.width;
    index_choose(call, begin, std::min(begin + kIndexRows, length));
  }
  return chosen;
}

at::Tensor index_topk_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                             const IndexOptions& options) {
  if (cuda::available(q)) return cuda::table()->index_topk_decode(q, k, w, length, options);
  check("index_topk_decode", q, k, w, options);
  const int64_t rows = q.size(0);
  if (length < rows || length > k.size(0))
    throw std::invalid_argument(
        fmt::format("index_topk_decode: a context of {} rows does not hold {} new rows or exceeds the cache of {}",
                    length, rows, k.size(0)));
  IndexCall call = call_of(q, w, options, length);
  const auto chosen = at::empty({rows, call.width}, q.options().dtype(at::kInt));
  const auto keys = packed_keys(k, 1, length);
  const std::vector<int32_t> start(rows, 0);
  call.keys = keys.const_data_ptr<float>();
  call.start = start.data();
  call.position = length - rows;
  call.chosen = chosen.data_ptr<int32_t>();
  const int64_t blocks = (rows + kIndexRows - 1) / kIndexRows;
#pragma omp parallel for schedule(dynamic, 1) if (blocks > 1)
  for (int64_t block = 0; block < blocks; ++block)
    index_choose(call, block * kIndexRows, std::min((block + 1) * kIndexRows, rows));
  return chosen;
}

}  // namespace cairn::kernels
