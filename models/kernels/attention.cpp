#include "models/kernels/attention.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <vector>

#include "models/kernels/available.h"
#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_attention.h"
#include "models/kernels/cpu/simd_experts.h"
#include "models/random.h"

namespace cairn::kernels {
namespace {

void check(const char* what, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto fail = [&](const std::string& why) {
    throw std::invalid_argument(fmt::format(
        "{}: {}; q {}, k {}, v {}: expected float32 CPU tensors q [N, H, D], k and v [N, K, D] with K dividing H and "
        "a contiguous last dimension",
        what, why, fmt::join(q.sizes(), "x"), fmt::join(k.sizes(), "x"), fmt::join(v.sizes(), "x")));
  };
  for (const auto* x : {&q, &k, &v}) {
    if (!available(*x)) fail("not float32 on the CPU");
    if (x->dim() != 3) fail("not three-dimensional");
    if (x->size(2) != q.size(2)) fail("head sizes differ");
    if (x->size(2) > 1 && x->stride(2) != 1) fail("last dimension is strided");
    if (x->size(1) > 1 && x->stride(1) != x->size(2)) fail("heads do not follow one another");
  }
  if (k.size(1) != v.size(1) || k.size(0) != v.size(0)) fail("k and v differ");
  if (k.size(1) == 0 || q.size(1) % k.size(1) != 0) fail("kv heads do not divide the heads");
}

Rows rows_of(const at::Tensor& x) { return {x.const_data_ptr<float>(), x.stride(0)}; }
Rows head_of(Rows rows, int64_t row, int64_t head, int64_t dim) {
  return {rows.data + row * rows.stride + head * dim, rows.stride};
}

AttentionCall call_of(const at::Tensor& q, int64_t kv_heads, int64_t length, const AttentionOptions& options) {
  AttentionCall call;
  call.length = length;
  call.heads = q.size(1), call.kv_heads = kv_heads, call.dim = q.size(2);
  call.padded = (call.dim + 15) / 16 * 16;
  call.tiles = (length + kKeyTile - 1) / kKeyTile;
  const double log2e = std::numbers::log2e;
  const double q_scale = options.softcap > 0 ? options.scale / options.softcap : options.scale * log2e;
  call.q_scale = static_cast<float>(q_scale);
  call.cap = static_cast<float>(options.softcap * log2e);
  call.dq_scale = static_cast<float>(options.scale);
  call.dk_scale = static_cast<float>(options.scale / q_scale);
  if (options.dropout > 0) {
    call.drop_threshold = static_cast<uint32_t>(options.dropout * 0x1.0p32);
    call.keep = static_cast<float>(1.0 / (1.0 - options.dropout));
    // As Philox::block in models/random.h.
    const uint64_t key =
        options.dropout_key.seed ^ (uint64_t{static_cast<uint32_t>(Purpose::dropout)} * 0x9E3779B97F4A7C15ull);
    call.key[0] = static_cast<uint32_t>(key), call.key[1] = static_cast<uint32_t>(key >> 32);
    call.stream = options.dropout_key.stream;
    call.first_row = options.dropout_key.first_row;
  }
  return call;
}

// The sinks in the kernels' units; empty where there are none.
std::vector<float> sinks_of(const AttentionOptions& options, int64_t heads) {
  if (!options.sinks.defined()) return {};
  check_floats(options.sinks, {heads}, "attention", "sinks");
  const float* sink = options.sinks.const_data_ptr<float>();
  std::vector<float> scaled(sink, sink + heads);
  for (float& s : scaled) s *= static_cast<float>(std::numbers::log2e);
  return scaled;
}

// [N]: the first position of its sequence that each row sees.
std::vector<int32_t> first_keys(int64_t rows, const AttentionOptions& options) {
  const int64_t length = rows / options.batch;
  std::vector<int32_t> first(rows);
  const at::Tensor segments = options.segments.defined() ? options.segments.contiguous() : at::Tensor();
  const int32_t* segment = segments.defined() ? segments.const_data_ptr<int32_t>() : nullptr;
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t t = n % length;
    const int64_t window = options.window > 0 ? std::max<int64_t>(0, t - options.window + 1) : 0;
    int64_t start = 0;
    if (segment != nullptr && t > 0) start = segment[n] == segment[n - 1] ? 0 : t;
    // The start of the segment is carried from the row before; it never falls, and neither does the window's edge.
    first[n] = static_cast<int32_t>(std::max({window, start, t > 0 ? int64_t{first[n - 1]} : int64_t{0}}));
  }
  return first;
}

// How many pieces the backward pass of one kv head is cut into: enough that 16 tasks come from one long sequence. From
// the shape alone, since the sums of the pieces are added afterwards.
int64_t piece_count(const AttentionCall& call, int64_t pairs) {
  return std::clamp<int64_t>(pairs / 128, 1, std::clamp<int64_t>(16 / call.kv_heads, 2, 8));
}

// Pairs (query block, key tile) that a query block meets, counted without segments.
int64_t pairs_of(int64_t block, int64_t window) {
  const int64_t start = block * kQueryBlock;
  const int64_t first = window > 0 ? std::max<int64_t>(0, start - window + 1) / kKeyTile : 0;
  return (start + kQueryBlock - 1) / kKeyTile - first + 1;
}

// Entries (head of the group, block) in order, cut into pieces of nearly equal work: boundaries.
std::vector<int64_t> pieces_of(const AttentionCall& call, int64_t window) {
  const int64_t group = call.heads / call.kv_heads, blocks = (call.length + kQueryBlock - 1) / kQueryBlock;
  int64_t pairs = 0;
  for (int64_t b = 0; b < blocks; ++b) pairs += pairs_of(b, window);
  pairs *= group;
  const int64_t count = piece_count(call, pairs);
  std::vector<int64_t> bounds{0};
  for (int64_t e = 0, done = 0; e < group * blocks; ++e) {
    done += pairs_of(e % blocks, window);
    if (done * count >= pairs * static_cast<int64_t>(bounds.size()) && bounds.size() < count) bounds.push_back(e + 1);
  }
  bounds.push_back(group * blocks);
  return bounds;
}

}  // namespace

AttentionOutput attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttentionOptions& options) {
  check("attention_forward", q, k, v);
  const int64_t batch = options.batch, length = q.size(0) / batch;
  AttentionCall call = call_of(q, k.size(1), length, options);
  const auto first = first_keys(q.size(0), options);
  call.first_key = first.data();
  const auto sinks = sinks_of(options, call.heads);
  call.sinks = sinks.empty() ? nullptr : sinks.data();
  AttentionOutput result{at::empty({q.size(0), call.heads * call.dim}, q.options()),
                         at::empty({batch, call.heads, length}, q.options())};

  const int64_t dim = call.dim, padded = call.padded, sequences = batch * call.kv_heads,
                threads = omp_get_max_threads();
  const int64_t blocks = (length + kQueryBlock - 1) / kQueryBlock, group = call.heads / call.kv_heads;
  // Where there are enough of them, one thread takes a whole (sequence, kv head) and its packed keys stay in its cache.
  // The split changes no bits.
  const bool alone = sequences % threads == 0 || sequences >= 4 * threads;
  const int64_t keys_size = call.tiles * kKeyTile * dim, values_size = call.tiles * kKeyTile * padded;
  const auto memory = at::empty({(alone ? threads : sequences) * (keys_size + values_size)}, q.options());
  float* const slots = memory.data_ptr<float>();
  float *out = result.out.data_ptr<float>(), *lse = result.lse.data_ptr<float>();
  const Rows q_rows = rows_of(q), k_rows = rows_of(k), v_rows = rows_of(v);

  const auto pack = [&](int64_t sequence, int64_t tile, int64_t slot) {
    const int64_t row = sequence / call.kv_heads * length + tile * kKeyTile, head = sequence % call.kv_heads;
    const int64_t count = std::min(kKeyTile, length - tile * kKeyTile);
    float *keys = slots + slot * (keys_size + values_size), *values = keys + keys_size;
    attention_pack(head_of(k_rows, row, head, dim), count, dim, padded, 1.0f, nullptr, keys + tile * kKeyTile * dim);
    attention_pack(head_of(v_rows, row, head, dim), count, dim, padded, 1.0f, values + tile * kKeyTile * padded,
                   nullptr);
  };
  const auto attend = [&](int64_t sequence, int64_t entry, int64_t slot) {
    const int64_t head = sequence % call.kv_heads * group + entry / blocks, b = sequence / call.kv_heads,
                  row0 = b * length;
    const float *keys = slots + slot * (keys_size + values_size), *values = keys + keys_size;
    attention_forward_block(call, row0, head, blocks - 1 - entry % blocks, head_of(q_rows, row0, head, dim), keys,
                            values, out + row0 * call.heads * dim + head * dim, lse + (b * call.heads + head) * length);
  };
#pragma omp parallel
  if (alone) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      for (int64_t tile = 0; tile < call.tiles; ++tile) pack(sequence, tile, omp_get_thread_num());
      for (int64_t entry = 0; entry < group * blocks; ++entry) attend(sequence, entry, omp_get_thread_num());
    }
  } else {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * call.tiles; ++task)
      pack(task / call.tiles, task % call.tiles, task / call.tiles);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * group * blocks; ++task) {
      attend(task / (group * blocks), task % (group * blocks), task / (group * blocks));
    }
  }
  return result;
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& out, const at::Tensor& lse, const AttentionOptions& options,
                        const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv) {
  check("attention_backward", q, k, v);
  check("attention_backward (gradients)", dq, dk, dv);
  const int64_t batch = options.batch, length = q.size(0) / batch;
  AttentionCall call = call_of(q, k.size(1), length, options);
  const auto first = first_keys(q.size(0), options);
  call.first_key = first.data();
  const at::Tensor dout_c = dout.contiguous(), out_c = out.contiguous(), lse_c = lse.contiguous();

  const int64_t dim = call.dim, padded = call.padded, sequences = batch * call.kv_heads;
  const auto bounds = pieces_of(call, options.window);
  const int64_t pieces = static_cast<int64_t>(bounds.size()) - 1;
  const bool alone = pieces == 1;  // as in the forward pass
  // A slot: transposed keys and values, plain keys, and dk and dv of every piece.
  const int64_t keys_size = call.tiles * kKeyTile * dim, plain_size = call.tiles * kKeyTile * padded,
                sum_size = length * padded;
  const int64_t slot_size = 2 * keys_size + plain_size + 2 * pieces * sum_size;
  const auto memory = at::empty({(alone ? omp_get_max_threads() : sequences) * slot_size}, q.options());
  float* const slots = memory.data_ptr<float>();
  const Rows q_rows = rows_of(q), k_rows = rows_of(k), v_rows = rows_of(v), dq_rows = rows_of(dq);
  const Rows dout_rows{dout_c.const_data_ptr<float>(), call.heads * dim},
      out_rows{out_c.const_data_ptr<float>(), call.heads * dim};
  const float* lse_data = lse_c.const_data_ptr<float>();
  float *dq_data = dq.data_ptr<float>(), *dk_data = dk.data_ptr<float>(), *dv_data = dv.data_ptr<float>();
  const auto sums_of = [&](int64_t slot) {
    return slots + slot * slot_size + 2 * keys_size + plain_size;
  };  // [piece][dk, dv]

  const auto pack = [&](int64_t sequence, int64_t tile, int64_t slot) {
    const int64_t begin = tile * kKeyTile, row = sequence / call.kv_heads * length + begin,
                  head = sequence % call.kv_heads;
    const int64_t count = std::min(kKeyTile, length - begin);
    float *keys = slots + slot * slot_size, *values = keys + keys_size, *keys_plain = values + keys_size;
    attention_pack(head_of(k_rows, row, head, dim), count, dim, padded, 1.0f, keys_plain + begin * padded,
                   keys + begin * dim);
    attention_pack(head_of(v_rows, row, head, dim), count, dim, padded, 1.0f, nullptr, values + begin * dim);
  };
  const auto differentiate = [&](int64_t sequence, int64_t p, int64_t slot) {
    const int64_t b = sequence / call.kv_heads;
    BackwardPiece piece;
    piece.row0 = b * length, piece.kv_head = sequence % call.kv_heads;
    piece.begin = bounds[p], piece.end = bounds[p + 1];
    piece.keys = slots + slot * slot_size, piece.values = piece.keys + keys_size,
    piece.keys_plain = piece.values + keys_size;
    piece.q = q_rows, piece.dout = dout_rows, piece.out = out_rows;
    piece.lse = lse_data + b * call.heads * length;
    piece.dq = dq_data, piece.dq_stride = dq_rows.stride;
    piece.dk = sums_of(slot) + 2 * p * sum_size, piece.dv = piece.dk + sum_size;
    std::fill_n(piece.dk, 2 * sum_size, 0.0f);
    attention_backward_piece(call, piece);
  };
  const auto join = [&](int64_t sequence, int64_t tile, int64_t slot) {
    const int64_t begin = tile * kKeyTile, end = std::min(begin + kKeyTile, length);
    const int64_t row0 = sequence / call.kv_heads * length, head = sequence % call.kv_heads;
    const float* sums = sums_of(slot);
    attention_join(sums, pieces, 2 * sum_size, begin, end, dim, padded, call.dk_scale,
                   dk_data + row0 * dk.stride(0) + head * dim, dk.stride(0));
    attention_join(sums + sum_size, pieces, 2 * sum_size, begin, end, dim, padded, 1.0f,
                   dv_data + row0 * dv.stride(0) + head * dim, dv.stride(0));
  };
#pragma omp parallel
  if (alone) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
      const int64_t slot = omp_get_thread_num();
      for (int64_t tile = 0; tile < call.tiles; ++tile) pack(sequence, tile, slot);
      differentiate(sequence, 0, slot);
      for (int64_t tile = 0; tile < call.tiles; ++tile) join(sequence, tile, slot);
    }
  } else {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * call.tiles; ++task)
      pack(task / call.tiles, task % call.tiles, task / call.tiles);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * pieces; ++task)
      differentiate(task / pieces, task % pieces, task / pieces);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sequences * call.tiles; ++task)
      join(task / call.tiles, task % call.tiles, task / call.tiles);
  }
}

void attention_backward_sinks_(const at::Tensor& dsinks, const at::Tensor& dout, const at::Tensor& out,
                               const at::Tensor& lse, const AttentionOptions& options) {
  const char* op = "attention_backward_sinks_";
  const int64_t batch = options.batch, heads = options.sinks.size(0), N = out.size(0), length = N / batch;
  const int64_t dim = out.size(1) / heads;
  check_floats(dsinks, {heads}, op, "dsinks");
  check_floats(options.sinks, {heads}, op, "sinks");
  check_floats(out, {N, heads * dim}, op, "out");
  check_floats(dout, {N, heads * dim}, op, "dout");
  check_floats(lse, {batch, heads, length}, op, "lse");
  const float *o = out.const_data_ptr<float>(), *g = dout.const_data_ptr<float>(), *l = lse.const_data_ptr<float>(),
              *sink = options.sinks.const_data_ptr<float>();
  float* to = dsinks.mutable_data_ptr<float>();
#pragma omp parallel for schedule(static)
  for (int64_t h = 0; h < heads; ++h) {
    double sum = 0;
    for (int64_t n = 0; n < N; ++n) {
      const double p = std::exp(static_cast<double>(sink[h] - l[(n / length * heads + h) * length + n % length]));
      sum += p * dot_rows(g + n * heads * dim + h * dim, o + n * heads * dim + h * dim, dim);
    }
    to[h] -= static_cast<float>(sum);
  }
}

at::Tensor attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v, int64_t length,
                            const AttentionOptions& options) {
  check("attention_decode", q, cache_k, cache_v);
  const int64_t rows = q.size(0);
  if (length < rows || length > cache_k.size(0)) {
    throw std::invalid_argument(
        fmt::format("attention_decode: a context of {} rows does not hold {} new rows or exceeds the cache of {}",
                    length, rows, cache_k.size(0)));
  }
  const AttentionCall call = call_of(q, cache_k.size(1), length, options);
  const auto sinks = sinks_of(options, call.heads);
  const int64_t dim = call.dim, padded = call.padded, group = call.heads / call.kv_heads;
  // Query rows (row n, head g of the group) of one kv head, in groups of at most 64.
  const int64_t lines = rows * group, parts = (lines + kDecodeRows - 1) / kDecodeRows;
  std::vector<int32_t> first(lines), last(lines);
  for (int64_t i = 0; i < lines; ++i) {
    last[i] = static_cast<int32_t>(length - rows + i / group);
    first[i] = static_cast<int32_t>(options.window > 0 ? std::max<int64_t>(0, last[i] - options.window + 1) : 0);
  }
  const int64_t tile0 = first[0] / kKeyTile, tiles = (length - 1) / kKeyTile + 1 - tile0;
  const int64_t jobs = call.kv_heads * parts;
  auto out = at::empty({rows, call.heads * dim}, q.options());
  const auto queries = at::zeros({jobs, dim, kKeyTile}, q.options());
  const auto maximum = at::zeros({jobs, tiles, kKeyTile}, q.options()),
             sum = at::zeros({jobs, tiles, kKeyTile}, q.options());
  const auto partial = at::empty({jobs, tiles, std::min(lines, kDecodeRows), padded}, q.options());
  const Rows k_rows = rows_of(cache_k), v_rows = rows_of(cache_v);
  const float* q_data = q.const_data_ptr<float>();
  float *q_packed = queries.data_ptr<float>(), *m = maximum.data_ptr<float>(), *s = sum.data_ptr<float>(),
        *o = partial.data_ptr<float>();
  float* out_data = out.data_ptr<float>();
  const int64_t job_rows = std::min(lines, kDecodeRows), o_tile = job_rows * padded;

  for (int64_t job = 0; job < jobs; ++job) {
    const int64_t head0 = job / parts * group, line0 = job % parts * kDecodeRows,
                  count = std::min(kDecodeRows, lines - line0);
    for (int64_t i = 0; i < count; ++i) {
      const float* from = q_data + (line0 + i) / group * q.stride(0) + (head0 + (line0 + i) % group) * dim;
      for (int64_t c = 0; c < dim; ++c) q_packed[(job * dim + c) * kKeyTile + i] = from[c] * call.q_scale;
    }
  }
  // Below about 64k multiplications a team of threads costs more than it saves.
#pragma omp parallel if (jobs * tiles * job_rows * dim > 1024)
  {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < jobs * tiles; ++task) {
      const int64_t job = task / tiles, t = task % tiles, head = job / parts, line0 = job % parts * kDecodeRows;
      const int64_t count = std::min(kDecodeRows, lines - line0), tile = tile0 + t,
                    keys = std::min(kKeyTile, length - tile * kKeyTile);
      attention_decode_tile(call, count, q_packed + job * dim * kKeyTile, head_of(k_rows, 0, head, dim),
                            head_of(v_rows, 0, head, dim), tile, keys, first.data() + line0, last.data() + line0,
                            m + task * kKeyTile, s + task * kKeyTile, o + task * o_tile);
    }
#pragma omp for schedule(static)
    for (int64_t job = 0; job < jobs; ++job) {
      const int64_t head0 = job / parts * group, line0 = job % parts * kDecodeRows,
                    count = std::min(kDecodeRows, lines - line0);
      float* to[kDecodeRows];
      float sink[kDecodeRows];
      for (int64_t i = 0; i < count && !sinks.empty(); ++i) sink[i] = sinks[head0 + (line0 + i) % group];
      for (int64_t i = 0; i < count; ++i)
        to[i] = out_data + (line0 + i) / group * call.heads * dim + (head0 + (line0 + i) % group) * dim;
      attention_decode_join(call, count, tiles, m + job * tiles * kKeyTile, s + job * tiles * kKeyTile,
                            o + job * tiles * o_tile, o_tile, sinks.empty() ? nullptr : sink, to);
    }
  }
  return out;
}

}  // namespace cairn::kernels
