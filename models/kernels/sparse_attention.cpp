#include "models/kernels/sparse_attention.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <numbers>
#include <stdexcept>
#include <vector>

#include "models/kernels/available.h"
#include "models/kernels/cpu/simd_sparse_attention.h"
#include "models/kernels/cuda/table.h"
#include "models/kernels/selection.h"

namespace cairn::kernels {
namespace {

void check(const char* what, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
           const AttentionOptions& options) {
  const auto fail = [&](const std::string& why) {
    throw std::invalid_argument(
        fmt::format("{}: {}; q {}, k {}, v {}: expected float32 CPU tensors q [N, H, D], k [N, K, D], v [N, K, E] with "
                    "K dividing H "
                    "and a contiguous last dimension",
                    what, why, fmt::join(q.sizes(), "x"), fmt::join(k.sizes(), "x"), fmt::join(v.sizes(), "x")));
  };
  for (const auto* x : {&q, &k, &v}) {
    if (!available(*x)) fail("not float32 on the CPU");
    if (x->dim() != 3) fail("not three-dimensional");
    if (x->size(2) > 1 && x->stride(2) != 1) fail("last dimension is strided");
    if (x->size(1) > 1 && x->stride(1) != x->size(2)) fail("heads do not follow one another");
  }
  if (q.size(2) != k.size(2)) fail("q and k differ in head size");
  if (k.size(1) != v.size(1) || k.size(0) != v.size(0)) fail("k and v differ");
  if (k.size(1) == 0 || q.size(1) % k.size(1) != 0) fail("kv heads do not divide the heads");
  if (options.window > 0) fail("a window is the selection's matter");
  if (options.softcap > 0) fail("soft-capping is not supported");
  if (options.dropout > 0) fail("dropout is not supported");
}

// Rows of both tensors fit a batch of sequences.
void check_rows(const char* what, const at::Tensor& q, const at::Tensor& k, int64_t batch) {
  if (q.size(0) == k.size(0) && batch > 0 && q.size(0) % batch == 0) return;
  throw std::invalid_argument(fmt::format("{}: {} queries and {} keys are not {} sequences of equal length", what,
                                          q.size(0), k.size(0), batch));
}

Rows rows_of(const at::Tensor& x) { return {x.const_data_ptr<float>(), x.stride(0)}; }
Rows head_of(Rows rows, int64_t row, int64_t head, int64_t dim) {
  return {rows.data + row * rows.stride + head * dim, rows.stride};
}

SparseCall call_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t width, double scale) {
  SparseCall call;
  call.heads = q.size(1), call.group = q.size(1) / k.size(1);
  call.key_dim = q.size(2), call.value_dim = v.size(2);
  call.keys = (call.key_dim + 15) / 16 * 16, call.values = (call.value_dim + 15) / 16 * 16;
  call.width = width;
  call.q_scale = static_cast<float>(scale * std::numbers::log2e);
  call.dq_scale = static_cast<float>(scale);
  call.dk_scale = static_cast<float>(1 / std::numbers::log2e);
  return call;
}

constexpr int64_t kPackRows = 256;  // of a task; changes no bits

// Rows that go through a pass together: as many as eight megabytes hold at `line` floats a head.
int64_t rows_together(const SparseCall& call, int64_t line) {
  return std::max<int64_t>((int64_t{8} << 20) / (call.group * line * static_cast<int64_t>(sizeof(float))), 16);
}

// Queries of a sequence are cut into pieces whose sums for keys and values are added afterwards: from the shape alone.
int64_t piece_count(int64_t kv_heads, int64_t length) {
  return std::clamp<int64_t>(length / 512, 1, std::clamp<int64_t>(8 / kv_heads, 1, 8));
}

// Keys and values, so many rows of them that they stay in a core's second cache; half of that where their gradients lie
// beside them. Part of the numbers.
int64_t block_rows(const SparseCall& call) {
  constexpr int64_t kBytes = 1 << 20;
  return std::max<int64_t>(kBytes / (call.row() * static_cast<int64_t>(sizeof(float))) / 64 * 64, 64);
}

// Where there are enough of them, one thread takes a whole (sequence, kv head), which then stays in its cache.
bool alone(int64_t sequences) {
  const int64_t threads = omp_get_max_threads();
  return sequences % threads == 0 || sequences >= 4 * threads;
}

// Cache lines of memory that at::empty gives.
at::Tensor floats(int64_t count) { return at::empty({count}, at::TensorOptions(at::kFloat)); }

}  // namespace

AttentionOutput sparse_attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                         const at::Tensor& selected, const AttentionOptions& options) {
  if (cuda::available(q)) return cuda::table()->sparse_attention_forward(q, k, v, selected, options);
  const char* what = "sparse_attention_forward";
  check(what, q, k, v, options);
  check_rows(what, q, k, options.batch);
  const int64_t batch = options.batch, rows = q.size(0), length = rows / batch, kv_heads = k.size(1);
  const Selection lists = read_selection(what, selected, rows, length, 0);
  const SparseCall call = call_of(q, k, v, lists.width, options.scale);
  AttentionOutput result{at::empty({rows, call.heads * call.value_dim}, q.options()),
                         at::empty({batch, call.heads, length}, q.options())};
  const int64_t rows_of_block = block_rows(call), blocks = (length + rows_of_block - 1) / rows_of_block;
  const auto splits = lists.splits(blocks, rows_of_block);
  const int64_t sequences = batch * kv_heads, slot_size = length * call.row();
  const bool whole = alone(sequences);
  const auto memory = floats((whole ? omp_get_max_threads() : sequences) * slot_size);
  float *slots = memory.data_ptr<float>(), *out = result.out.data_ptr<float>(), *lse = result.lse.data_ptr<float>();
  const Rows q_rows = rows_of(q), k_rows = rows_of(k), v_rows = rows_of(v);

  const auto pack = [&](int64_t sequence, int64_t begin, int64_t end, int64_t slot) {
    const int64_t row = sequence / kv_heads * length + begin, head = sequence % kv_heads;
    sparse_pack(call, head_of(k_rows, row, head, call.key_dim), head_of(v_rows, row, head, call.value_dim), end - begin,
                slots + slot * slot_size + begin * call.row());
  };
  const auto attend = [&](int64_t sequence, int64_t begin, int64_t end, int64_t slot) {
    const int64_t b = sequence / kv_heads, head = sequence % kv_heads * call.group, row0 = b * length;
    sparse_forward_rows(
        call,
        {slots + slot * slot_size, head_of(q_rows, row0, head, call.key_dim), lists.data + row0 * lists.width,
         lists.count.data() + row0, splits.data() + row0 * (blocks + 1), blocks, rows_of_block,
         out + (row0 * call.heads + head) * call.value_dim, call.heads * call.value_dim,
         lse + (b * call.heads + head) * length, length},
        begin, end);
  };
  // Smaller where threads share a head's rows.
  const int64_t chunk =
      std::min(rows_together(call, call.row() + 2), whole ? length : std::max<int64_t>(64, length / 16));
  const int64_t pack_tasks = (length + kPackRows - 1) / kPackRows, tasks = (length + chunk - 1) / chunk;
#pragma omp parallel if (rows * lists.width * call.heads > 1024)
  if (whole) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      pack(sequence, 0, length, omp_get_thread_num());
      for (int64_t begin = 0; begin < length; begin += chunk)
        attend(sequence, begin, std::min(begin + chunk, length), omp_get_thread_num());
    }
  } else {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * pack_tasks; ++task) {
      const int64_t begin = task % pack_tasks * kPackRows;
      pack(task / pack_tasks, begin, std::min(begin + kPackRows, length), task / pack_tasks);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * tasks; ++task) {
      const int64_t begin = task % tasks * chunk;
      attend(task / tasks, begin, std::min(begin + chunk, length), task / tasks);
    }
  }
  return result;
}

void sparse_attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& out, const at::Tensor& lse, const at::Tensor& selected,
                               const AttentionOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                               const at::Tensor& dv) {
  if (cuda::available(q))
    return cuda::table()->sparse_attention_backward(dout, q, k, v, out, lse, selected, options, dq, dk, dv);
  const char* what = "sparse_attention_backward";
  check(what, q, k, v, options);
  check("sparse_attention_backward (gradients)", dq, dk, dv, options);
  check_rows(what, q, k, options.batch);
  if (dq.sizes() != q.sizes() || dk.sizes() != k.sizes() || dv.sizes() != v.sizes())
    throw std::invalid_argument(fmt::format("{}: gradients {}, {}, {} are not shaped as q, k and v", what,
                                            fmt::join(dq.sizes(), "x"), fmt::join(dk.sizes(), "x"),
                                            fmt::join(dv.sizes(), "x")));
  const int64_t batch = options.batch, rows = q.size(0), length = rows / batch, kv_heads = k.size(1);
  const Selection lists = read_selection(what, selected, rows, length, 0);
  const SparseCall call = call_of(q, k, v, lists.width, options.scale);
  const at::Tensor dout_c = dout.contiguous(), out_c = out.contiguous(), lse_c = lse.contiguous();
  const int64_t rows_of_block = std::max<int64_t>(block_rows(call) / 128 * 64, 64),
                blocks = (length + rows_of_block - 1) / rows_of_block;
  const auto splits = lists.splits(blocks, rows_of_block);

  const int64_t sequences = batch * kv_heads, pieces = piece_count(kv_heads, length), size = length * call.row();
  const bool whole = alone(sequences);
  // A slot: packed keys and values, and their gradients from every piece.
  const int64_t slot_size = (1 + pieces) * size;
  const auto memory = floats((whole ? omp_get_max_threads() : sequences) * slot_size);
  float* const slots = memory.data_ptr<float>();
  const Rows q_rows = rows_of(q), k_rows = rows_of(k), v_rows = rows_of(v), dq_rows = rows_of(dq);
  const Rows dout_rows{dout_c.const_data_ptr<float>(), call.heads * call.value_dim},
      out_rows{out_c.const_data_ptr<float>(), call.heads * call.value_dim};
  const float* lse_data = lse_c.const_data_ptr<float>();
  float *dq_data = dq.data_ptr<float>(), *dk_data = dk.data_ptr<float>(), *dv_data = dv.data_ptr<float>();
  const int64_t dk_stride = dk.stride(0), dv_stride = dv.stride(0);

  const int64_t chunk = rows_together(call, call.row() + call.keys + 2);  // part of the numbers
  const auto pack = [&](int64_t sequence, int64_t begin, int64_t end, int64_t slot) {
    const int64_t row = sequence / kv_heads * length + begin, head = sequence % kv_heads;
    sparse_pack(call, head_of(k_rows, row, head, call.key_dim), head_of(v_rows, row, head, call.value_dim), end - begin,
                slots + slot * slot_size + begin * call.row());
  };
  const auto differentiate = [&](int64_t sequence, int64_t piece, int64_t slot) {
    const int64_t b = sequence / kv_heads, head = sequence % kv_heads * call.group, row0 = b * length;
    const int64_t begin = piece * length / pieces, end = (piece + 1) * length / pieces;
    SparseBackward job;
    job.packed = slots + slot * slot_size;
    job.q = head_of(q_rows, row0, head, call.key_dim);
    job.dout = head_of(dout_rows, row0, head, call.value_dim);
    job.out = head_of(out_rows, row0, head, call.value_dim);
    job.selected = lists.data + row0 * lists.width;
    job.splits = splits.data() + row0 * (blocks + 1), job.blocks = blocks, job.block_rows = rows_of_block;
    job.lse = lse_data + (b * call.heads + head) * length, job.lse_stride = length;
    job.dq = dq_data + row0 * dq_rows.stride + head * call.key_dim, job.dq_stride = dq_rows.stride;
    job.sums = slots + slot * slot_size + (1 + piece) * size;
    std::fill_n(job.sums, size, 0.0f);
    for (int64_t first = begin; first < end; first += chunk)
      sparse_backward_rows(call, job, first, std::min(first + chunk, end));
  };
  const auto join = [&](int64_t sequence, int64_t begin, int64_t end, int64_t slot) {
    const int64_t row0 = sequence / kv_heads * length, head = sequence % kv_heads;
    sparse_join(call, slots + slot * slot_size + size, pieces, size, begin, end,
                dk_data + row0 * dk_stride + head * call.key_dim, dk_stride,
                dv_data + row0 * dv_stride + head * call.value_dim, dv_stride);
  };
  const int64_t pack_tasks = (length + kPackRows - 1) / kPackRows;
#pragma omp parallel if (rows * lists.width * call.heads > 1024)
  if (whole) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      const int64_t slot = omp_get_thread_num();
      pack(sequence, 0, length, slot);
      for (int64_t piece = 0; piece < pieces; ++piece) differentiate(sequence, piece, slot);
      join(sequence, 0, length, slot);
    }
  } else {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * pack_tasks; ++task) {
      const int64_t begin = task % pack_tasks * kPackRows;
      pack(task / pack_tasks, begin, std::min(begin + kPackRows, length), task / pack_tasks);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * pieces; ++task)
      differentiate(task / pieces, task % pieces, task / pieces);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * pack_tasks; ++task) {
      const int64_t begin = task % pack_tasks * kPackRows;
      join(task / pack_tasks, begin, std::min(begin + kPackRows, length), task / pack_tasks);
    }
  }
}

at::Tensor sparse_attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                   const at::Tensor& selected, int64_t length, const AttentionOptions& options) {
  if (cuda::available(q)) return cuda::table()->sparse_attention_decode(q, cache_k, cache_v, selected, length, options);
  const char* what = "sparse_attention_decode";
  check(what, q, cache_k, cache_v, options);
  const int64_t rows = q.size(0), kv_heads = cache_k.size(1);
  if (length < rows || length > cache_k.size(0))
    throw std::invalid_argument(
        fmt::format("{}: a context of {} rows does not hold {} new rows or exceeds the cache of {}", what, length, rows,
                    cache_k.size(0)));
  const Selection lists = read_selection(what, selected, rows, rows, length - rows);
  const SparseCall call = call_of(q, cache_k, cache_v, lists.width, options.scale);
  const auto out = at::empty({rows, call.heads * call.value_dim}, q.options());
  const auto lse = floats(call.heads * rows);
  const Rows q_rows = rows_of(q), k_rows = rows_of(cache_k), v_rows = rows_of(cache_v);
  float *out_data = out.data_ptr<float>(), *lse_data = lse.data_ptr<float>();
  // Sums are cut where the forward pass cuts them.
  const int64_t rows_of_block = block_rows(call), blocks = (length + rows_of_block - 1) / rows_of_block;
  const auto splits = lists.splits(blocks, rows_of_block);
  // A row and a kv head: what its list names is brought together, then numbered from 0 on.
  std::vector<int32_t> numbers(lists.width);
  for (int64_t i = 0; i < lists.width; ++i) numbers[i] = static_cast<int32_t>(i);
  const auto memory = floats(omp_get_max_threads() * lists.width * call.row());
  float* const slots = memory.data_ptr<float>();
#pragma omp parallel for schedule(static) if (rows * lists.width * call.heads > 1024)
  for (int64_t task = 0; task < rows * kv_heads; ++task) {
    const int64_t n = task / kv_heads, kv_head = task % kv_heads, head = kv_head * call.group;
    float* packed = slots + omp_get_thread_num() * lists.width * call.row();
    for (int64_t i = 0; i < lists.count[n]; ++i) {
      const int64_t position = lists.data[n * lists.width + i];
      sparse_pack(call, head_of(k_rows, position, kv_head, call.key_dim),
                  head_of(v_rows, position, kv_head, call.value_dim), 1, packed + i * call.row());
    }
    sparse_forward_rows(
        call,
        {packed, head_of(q_rows, n, head, call.key_dim), numbers.data(), lists.count.data() + n,
         splits.data() + n * (blocks + 1), blocks, 0, out_data + (n * call.heads + head) * call.value_dim,
         call.heads * call.value_dim, lse_data + head * rows + n, rows},
        0, 1);
  }
  return out;
}

}  // namespace cairn::kernels
