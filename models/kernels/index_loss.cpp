#include "models/kernels/index_loss.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <numbers>
#include <stdexcept>

#include "models/kernels/available.h"
#include "models/kernels/candidates.h"
#include "models/kernels/cpu/simd_index_loss.h"
#include "models/kernels/cuda/table.h"
#include "models/kernels/selection.h"

namespace cairn::kernels {
namespace {

[[noreturn]] void fail(const char* what, const std::string& why) {
  throw std::invalid_argument(fmt::format("{}: {}", what, why));
}

void check_indexer(const char* what, const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t batch) {
  const auto shapes = [&] {
    return fmt::format(
        "q {}, k {}, w {}: expected float32 CPU tensors q [N, J, D], k [N, D], w [N, J], the last "
        "dimension contiguous, N a multiple of the batch",
        fmt::join(q.sizes(), "x"), fmt::join(k.sizes(), "x"), fmt::join(w.sizes(), "x"));
  };
  if (q.dim() != 3 || k.dim() != 2 || w.dim() != 2) fail(what, shapes());
  for (const auto* x : {&q, &k, &w})
    if (!available(*x) || (x->size(-1) > 1 && x->stride(-1) != 1)) fail(what, shapes());
  if (q.size(1) > 1 && q.stride(1) != q.size(2)) fail(what, shapes());
  if (q.size(0) != k.size(0) || q.size(0) != w.size(0) || q.size(1) != w.size(1) || q.size(2) != k.size(1))
    fail(what, shapes());
  if (batch < 1 || q.size(0) % batch != 0) fail(what, shapes());
}

void check_source(const char* what, const MassSource& s, int64_t rows, int64_t batch) {
  const auto shapes = [&] {
    return fmt::format(
        "source: q {}, k {}, lse {}: expected float32 CPU tensors q [{}, H, D], k [{}, K, D] with K "
        "dividing H, contiguous heads, lse [{}, H, {}]",
        fmt::join(s.q.sizes(), "x"), fmt::join(s.k.sizes(), "x"), fmt::join(s.lse.sizes(), "x"), rows, rows, batch,
        rows / batch);
  };
  for (const auto* x : {&s.q, &s.k}) {
    if (!available(*x) || x->dim() != 3 || x->size(0) != rows) fail(what, shapes());
    if (x->size(2) > 1 && x->stride(2) != 1) fail(what, shapes());
    if (x->size(1) > 1 && x->stride(1) != x->size(2)) fail(what, shapes());
  }
  if (s.q.size(2) != s.k.size(2) || s.k.size(1) == 0 || s.q.size(1) % s.k.size(1) != 0) fail(what, shapes());
  if (!available(s.lse) || s.lse.sizes() != at::IntArrayRef({batch, s.q.size(1), rows / batch})) fail(what, shapes());
}

at::Tensor floats(int64_t count) { return at::empty({count}, at::TensorOptions(at::kFloat)); }
int64_t padded_to_16(int64_t n) { return (n + 15) / 16 * 16; }

// x [sequences * length, K, D] -> plain [sequences][K][length, padded] and transposed tiles [sequences][K][tiles][D,
// 64]; either may be left out.
struct Packed {
  at::Tensor plain, tiles;
  int64_t plain_head = 0, tile_head = 0;  // floats of one head of one sequence

  Packed(const at::Tensor& x, int64_t batch, bool want_plain, bool want_tiles) {
    const int64_t length = x.size(0) / batch, heads = x.size(1), dim = x.size(2), padded = padded_to_16(dim);
    const int64_t count = (length + kKeyTile - 1) / kKeyTile;
    plain_head = length * padded, tile_head = count * kKeyTile * dim;
    if (want_plain) plain = floats(batch * heads * plain_head);
    if (want_tiles) tiles = floats(batch * heads * tile_head);
    const float* from = x.const_data_ptr<float>();
    const int64_t stride = x.stride(0);
    float *plain_data = want_plain ? plain.data_ptr<float>() : nullptr,
          *tile_data = want_tiles ? tiles.data_ptr<float>() : nullptr;
#pragma omp parallel for schedule(static) if (x.numel() > 32768)
    for (int64_t task = 0; task < batch * heads * count; ++task) {
      const int64_t head = task / count, begin = task % count * kKeyTile, row = head / heads * length + begin;
      attention_pack({from + row * stride + head % heads * dim, stride}, std::min(kKeyTile, length - begin), dim,
                     padded, 1.0f, want_plain ? plain_data + head * plain_head + begin * padded : nullptr,
                     want_tiles ? tile_data + head * tile_head + begin * dim : nullptr);
    }
  }
};

Rows queries_of(const MassSource& s, int64_t row, int64_t head) {
  return {s.q.const_data_ptr<float>() + row * s.q.stride(0) + head * s.q.size(2), s.q.stride(0)};
}

// The lists' part of a source: kv head `kv_head` of sequence `sequence`.
ListedMass listed_mass(const MassSource& s, const Packed& keys, const Selection& lists, int64_t length,
                       int64_t sequence, int64_t kv_head) {
  ListedMass job;
  const int64_t kv_heads = s.k.size(1), heads = s.q.size(1);
  job.group = heads / kv_heads, job.dim = s.q.size(2), job.padded = padded_to_16(job.dim);
  job.scale = static_cast<float>(s.scale * std::numbers::log2e);
  job.keys = keys.plain.const_data_ptr<float>() + (sequence * kv_heads + kv_head) * keys.plain_head;
  job.q = queries_of(s, sequence * length, kv_head * job.group);
  job.lse = s.lse.const_data_ptr<float>() + (sequence * heads + kv_head * job.group) * length;
  job.lse_stride = length;
  job.selected = lists.data + sequence * length * lists.width, job.count = lists.count.data() + sequence * length;
  job.width = lists.width;
  return job;
}

// Rows of a chunk of listed queries: few enough that their masses stay in a cache beside the keys of a head.
int64_t chunk_rows(int64_t ld) { return std::clamp<int64_t>(131072 / ld, 32, 512); }

// Pieces of a sequence that sum up the gradient of the keys apart: from the length alone.
int64_t piece_count(int64_t length) { return std::clamp<int64_t>(length / 256, 1, 16); }

std::vector<MassSource> contiguous_lse(std::vector<MassSource> sources) {
  for (auto& s : sources) s.lse = s.lse.contiguous();
  return sources;
}

}  // namespace

IndexLoss index_loss(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                     const std::vector<MassSource>& given, const IndexOptions& options, double coefficient) {
  if (cuda::available(q)) return cuda::table()->index_loss(q, k, w, selected, given, options, coefficient);
  const char* what = "index_loss";
  check_indexer(what, q, k, w, options.batch);
  const int64_t batch = options.batch, rows = q.size(0), length = rows / batch, heads = q.size(1), dim = q.size(2),
                padded = padded_to_16(dim);
  if (given.empty()) fail(what, "no source of attention mass");
  for (const auto& s : given) check_source(what, s, rows, batch);
  if (options.topk > 0 && options.sinks + options.window > options.topk)
    fail(what, fmt::format("{} sinks and a window of {} do not fit into topk {}", options.sinks, options.window,
                           options.topk));
  const auto sources = contiguous_lse(given);
  const bool dense = !selected.defined();
  const auto start = segment_starts(rows, batch, options.segments);
  const Packed indexer_keys(k.unsqueeze(1), batch, true, dense);
  std::vector<Packed> source_keys;
  for (const auto& s : sources) source_keys.emplace_back(s.k, batch, !dense, dense);

  IndexLoss result;
  const auto kl = floats(rows);
  const int64_t pieces = piece_count(length), size = length * padded;
  at::Tensor sums;
  IndexerRows all;
  all.heads = heads, all.dim = dim, all.padded = padded;
  all.q = q.const_data_ptr<float>(), all.w = w.const_data_ptr<float>();
  all.q_stride = q.stride(0), all.w_stride = w.stride(0);
  all.keys = indexer_keys.plain.const_data_ptr<float>();
  all.key_tiles = dense ? indexer_keys.tiles.const_data_ptr<float>() : nullptr;
  all.start = start.data();
  all.kl = kl.data_ptr<float>();
  all.coefficient = static_cast<float>(coefficient);
  if (coefficient != 0) {
    result.dq = at::empty({rows, heads, dim}, q.options());
    result.dw = at::empty({rows, heads}, q.options());
    result.dk = at::empty({rows, dim}, q.options());
    sums = at::zeros({batch * pieces, length, padded}, q.options());
    all.dq = result.dq.data_ptr<float>(), all.dw = result.dw.data_ptr<float>();
  }
  float* const sums_data = coefficient != 0 ? sums.data_ptr<float>() : nullptr;
  const auto sequence_part = [&](int64_t sequence, int64_t piece) {
    IndexerRows job = all;
    const int64_t row0 = sequence * length;
    job.q += row0 * job.q_stride, job.w += row0 * job.w_stride;
    job.keys += sequence * indexer_keys.plain_head;
    if (dense) job.key_tiles += sequence * indexer_keys.tile_head;
    job.start += row0, job.kl += row0;
    if (coefficient != 0) {
      job.dq += row0 * heads * dim, job.dw += row0 * heads;
      job.dk = sums_data + (sequence * pieces + piece) * size;
    }
    return job;
  };
  const int64_t threads = omp_get_max_threads();

  if (dense) {
    const int64_t blocks = (length + kKeyTile - 1) / kKeyTile, ld = blocks * kKeyTile;
    const int64_t strip = kKeyTile * ld * (sources.size() > 1 ? 3 : 2);
    const bool wants_recall = options.topk > 0 && options.topk < length;
    const auto strips = floats(threads * strip);
    const auto shares = wants_recall ? at::zeros({2, rows}, q.options()) : floats(0);
    float *const strip_data = strips.data_ptr<float>(), *const share_data = shares.data_ptr<float>();
#pragma omp parallel for schedule(dynamic, 1) if (rows > 64)
    for (int64_t task = 0; task < batch * pieces; ++task) {
      const int64_t sequence = task / pieces, piece = task % pieces, row0 = sequence * length;
      std::vector<DenseMass> masses;
      for (size_t i = 0; i < sources.size(); ++i) {
        const MassSource& s = sources[i];
        DenseMass m;
        m.heads = s.q.size(1), m.kv_heads = s.k.size(1), m.dim = s.q.size(2);
        m.scale = static_cast<float>(s.scale * std::numbers::log2e);
        m.head_stride = source_keys[i].tile_head;
        m.key_tiles = source_keys[i].tiles.const_data_ptr<float>() + sequence * m.kv_heads * m.head_stride;
        m.q = queries_of(s, row0, 0);
        m.lse = s.lse.const_data_ptr<float>() + sequence * m.heads * length;
        masses.push_back(m);
      }
      DenseRecall recall;
      if (wants_recall)
        recall = {options.topk, options.sinks, options.window, share_data + row0, share_data + rows + row0};
      const IndexerRows job = sequence_part(sequence, piece);
      // Every piece takes blocks from all over the sequence, so that they have equally much to do.
      for (int64_t block = piece; block < blocks; block += pieces)
        index_dense_block(job, masses.data(), masses.size(), recall, length, block,
                          strip_data + omp_get_thread_num() * strip, ld);
    }
    for (int64_t n = 0; wants_recall && n < rows; ++n) {
      if (n % length - start[n] < options.topk) continue;
      result.recall += share_data[n], result.best_recall += share_data[rows + n];
      ++result.recall_queries;
    }
  } else {
    const Selection lists = read_selection(what, selected, rows, length, 0);
    const int64_t ld = padded_to_16(lists.width) + 16, chunk = chunk_rows(ld);
    const auto memory = floats(threads * 2 * chunk * ld);
    float* const slots = memory.data_ptr<float>();
#pragma omp parallel for schedule(dynamic, 1) if (rows > 64)
    for (int64_t task = 0; task < batch * pieces; ++task) {
      const int64_t sequence = task / pieces, piece = task % pieces, row0 = sequence * length;
      const int64_t piece_end = (piece + 1) * length / pieces;
      float *mass = slots + omp_get_thread_num() * 2 * chunk * ld, *p = mass + chunk * ld;
      const int32_t* count = lists.count.data() + row0;
      const IndexerRows job = sequence_part(sequence, piece);
      for (int64_t begin = piece * length / pieces; begin < piece_end; begin += chunk) {
        const int64_t end = std::min(begin + chunk, piece_end);
        for (size_t i = 0; i < sources.size(); ++i) {
          std::fill_n(mass, (end - begin) * ld, 0.0f);
          for (int64_t head = 0; head < sources[i].k.size(1); ++head)
            index_listed_mass(listed_mass(sources[i], source_keys[i], lists, length, sequence, head), begin, end, mass,
                              ld);
          index_normalise(mass, end - begin, ld, count + begin, 1.0f / static_cast<float>(sources.size()), i > 0, p);
        }
        index_listed_loss(job, lists.data + row0 * lists.width, count, lists.width, p, ld, begin, end);
      }
    }
  }

  if (coefficient != 0) {
    float* const dk = result.dk.data_ptr<float>();
#pragma omp parallel for schedule(static) if (rows * dim > 32768)
    for (int64_t task = 0; task < batch * ((length + kKeyTile - 1) / kKeyTile); ++task) {
      const int64_t tiles = (length + kKeyTile - 1) / kKeyTile, sequence = task / tiles,
                    begin = task % tiles * kKeyTile;
      attention_join(sums_data + sequence * pieces * size, pieces, size, begin, std::min(begin + kKeyTile, length), dim,
                     padded, 1.0f, dk + sequence * length * dim, dim);
    }
  }
  const float* row_kl = kl.const_data_ptr<float>();
  for (int64_t n = 0; n < rows; ++n) {
    result.kl += row_kl[n];
    result.queries += n % length > start[n];
  }
  return result;
}

at::Tensor selected_mass(const MassSource& given, const at::Tensor& selected, const IndexOptions& options,
                         int64_t* queries) {
  const char* what = "selected_mass";
  const int64_t batch = options.batch, rows = given.q.size(0);
  if (batch < 1 || rows % batch != 0) fail(what, fmt::format("{} rows are not {} sequences", rows, batch));
  check_source(what, given, rows, batch);
  const MassSource source = contiguous_lse({given})[0];
  const int64_t length = rows / batch, heads = source.q.size(1), kv_heads = source.k.size(1);
  const Selection lists = read_selection(what, selected, rows, length, 0);
  const auto start = segment_starts(rows, batch, options.segments);
  const Packed keys(source.k, batch, true, false);
  const auto share = at::empty({rows, heads}, source.q.options());
  float* const to = share.data_ptr<float>();
  constexpr int64_t kRows = 128;
  const int64_t chunks = (length + kRows - 1) / kRows;
#pragma omp parallel for schedule(dynamic, 1) if (rows > 64)
  for (int64_t task = 0; task < batch * kv_heads * chunks; ++task) {
    const int64_t sequence = task / chunks / kv_heads, head = task / chunks % kv_heads, begin = task % chunks * kRows;
    const auto job = listed_mass(source, keys, lists, length, sequence, head);
    index_listed_share(job, begin, std::min(begin + kRows, length), to + sequence * length * heads + head * job.group,
                       heads);
  }
  const auto sums = at::zeros({heads}, at::kDouble);
  double* total = sums.data_ptr<double>();
  *queries = 0;
  for (int64_t n = 0; n < rows; ++n) {
    if (n % length - start[n] < options.topk) continue;
    for (int64_t h = 0; h < heads; ++h) total[h] += to[n * heads + h];
    ++*queries;
  }
  return sums;
}

}  // namespace cairn::kernels
