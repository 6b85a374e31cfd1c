#include "models/kernels/grouped_linear.h"

#include <algorithm>
#include <cstring>

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_experts.h"
#include "models/kernels/cpu/simd_linear.h"
#include "models/kernels/cuda/table.h"

// libtorch_cpu hands on its BLAS; inside a parallel region it runs on the calling thread alone.
extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace cairn::kernels {
namespace {

constexpr int64_t kRowMultiple = 8;   // as in linear.cpp
constexpr int64_t kTileRows = 256;    // rows of a group that one task takes, at most
constexpr int64_t kDecodeTokens = 8;  // up to here the kernel of decoding
constexpr int64_t kPiece = 64;        // outputs that a task of decoding takes

int64_t rounded(int64_t rows) { return (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

// ---- products of row-major matrices, each on one thread

// c [m, n] = a [m, k] b^T, b [n, k]; plus what c holds where `add`.
void times_transposed(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k, bool add) {
  const int rows = n, columns = m, terms = k;
  const float one = 1, beta = add ? 1.0f : 0.0f;
  sgemm_("T", "N", &rows, &columns, &terms, &one, b, &terms, a, &terms, &beta, c, &rows);
}
// c [m, n] = a [m, k] b [k, n]
void times(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  const int rows = n, columns = m, terms = k;
  const float one = 1, beta = 0;
  sgemm_("N", "N", &rows, &columns, &terms, &one, b, &rows, a, &terms, &beta, c, &rows);
}
// c [m, n] += a^T b, a [k, lda] of which m columns count, b [k, n]
void add_transposed_times(const float* a, int64_t lda, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  const int rows = n, columns = m, terms = k, stride = lda;
  const float one = 1;
  sgemm_("N", "T", &rows, &columns, &terms, &one, b, &rows, a, &stride, &one, c, &rows);
}

// ---- tasks

// Rows of one expert that one task takes: the last `rows - real` fill up.
struct Tile {
  int64_t expert, first, rows, real;
};

// The larger ones come first, so that no thread gets one when all others are done; the order changes no bits.
std::vector<Tile> tiles_of(const ExpertRows& rows) {
  std::vector<Tile> tiles;
  for (int64_t e = 0; e < rows.experts; ++e) {
    // In equal parts: a product of few rows takes long for what it does.
    const int64_t count = rows.count[e], parts = (count + kTileRows - 1) / kTileRows;
    const int64_t size = parts > 0 ? rounded((count + parts - 1) / parts) : 0;
    for (int64_t r = 0; r < count; r += size) {
      const int64_t real = std::min(size, count - r);
      tiles.push_back({e, rows.first[e] + r, rounded(real), real});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) { return a.rows > b.rows; });
  return tiles;
}

// A block of rows of an expert's weight whose gradient one task computes.
struct WeightBlock {
  int64_t expert, begin, end;
};
std::vector<WeightBlock> weight_blocks(const ExpertRows& rows, int64_t out) {
  std::vector<WeightBlock> blocks;
  // Some 32 tasks at least, where the matrices are large enough.
  const int64_t parts = std::clamp<int64_t>(32 / std::max<int64_t>(rows.experts, 1), 1, std::max<int64_t>(out / 64, 1));
  const int64_t size = (out + parts - 1) / parts;
  for (int64_t e = 0; e < rows.experts; ++e) {
    if (rows.count[e] == 0) continue;
    for (int64_t o = 0; o < out; o += size) blocks.push_back({e, o, std::min(o + size, out)});
  }
  std::stable_sort(blocks.begin(), blocks.end(), [&](const WeightBlock& a, const WeightBlock& b) {
    return rows.count[a.expert] > rows.count[b.expert];
  });
  return blocks;
}

float* scratch(std::vector<float>& memory, int64_t floats) {
  if (static_cast<int64_t>(memory.size()) < floats + 16) memory.resize(floats + 16);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float) % 16;
}

// Rows of x that a tile's tokens have; zeros fill up.
void gather(const float* x, int64_t width, const ExpertRows& rows, const Tile& tile, float* to) {
  for (int64_t r = 0; r < tile.real; ++r)
    std::memcpy(to + r * width, x + rows.pair[tile.first + r] / rows.slots * width, width * sizeof(float));
  std::fill_n(to + tile.real * width, (tile.rows - tile.real) * width, 0.0f);
}

void fill_rows(const float* bias, int64_t width, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * width, bias, width * sizeof(float));
}

GatedTile gated_of(const ExpertGate& gate, int64_t F) {
  GatedTile tile;
  tile.columns = F;
  tile.kind = gate.clamped ? -1 : static_cast<int>(gate.activation);
  tile.alpha = static_cast<float>(gate.alpha), tile.limit = static_cast<float>(gate.limit);
  return tile;
}

struct Shapes {
  int64_t N, C, F, E;
};
Shapes check_experts(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows, const ExpertWeights& w,
                     const char* op) {
  const Shapes s{rows.tokens, x.size(1), w.down.size(1), rows.experts};
  check_floats(x, {s.N, s.C}, op, "x");
  check_floats(weights, {s.N, rows.slots}, op, "weights");
  check_floats(w.gate_up, {s.E * 2 * s.F, s.C}, op, "gate_up");
  check_floats(w.down, {s.E * s.C, s.F}, op, "down");
  if (w.gate_up_bias.defined()) check_floats(w.gate_up_bias, {s.E * 2 * s.F}, op, "gate_up_bias");
  if (w.down_bias.defined()) check_floats(w.down_bias, {s.E * s.C}, op, "down_bias");
  return s;
}

const float* at_expert(const float* data, int64_t expert, int64_t size) {
  return data != nullptr ? data + expert * size : nullptr;
}

// Few tokens: every weight is streamed once, by all threads. gate_up [P, 2F], h [P, F], out [P, C].
void decode(const float* x, const ExpertRows& rows, const ExpertWeights& w, const ExpertGate& gate, const Shapes& s,
            float* gate_up, float* h, float* out) {
  const int64_t C = s.C, F = s.F;
  const auto tiles = tiles_of(rows);
  const at::Tensor gathered = at::empty({rows.padded, C}, w.down.options());
  float* inputs = gathered.mutable_data_ptr<float>();
  for (const Tile& tile : tiles) gather(x, C, rows, tile, inputs + tile.first * C);
  const float *up_data = w.gate_up.const_data_ptr<float>(), *down_data = w.down.const_data_ptr<float>();
  const float *up_bias = floats_or_null(w.gate_up_bias), *down_bias = floats_or_null(w.down_bias);
  const int64_t up_pieces = (2 * F + kPiece - 1) / kPiece, down_pieces = (C + kPiece - 1) / kPiece;
  const int64_t count = tiles.size();
#pragma omp parallel if (rows.tokens * rows.slots * C * F > 32768)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < count * up_pieces; ++task) {
      const Tile& t = tiles[task / up_pieces];
      const int64_t begin = task % up_pieces * kPiece, end = std::min(begin + kPiece, 2 * F);
      linear_few_rows(inputs + t.first * C, t.real, C, up_data + t.expert * 2 * F * C, C,
                      at_expert(up_bias, t.expert, 2 * F), gate_up + t.first * 2 * F, 2 * F, begin, end);
    }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < count; ++task) {
      GatedTile g = gated_of(gate, F);
      g.rows = tiles[task].real, g.gate_up = gate_up + tiles[task].first * 2 * F, g.h = h + tiles[task].first * F;
      gated_tile(g);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < count * down_pieces; ++task) {
      const Tile& t = tiles[task / down_pieces];
      const int64_t begin = task % down_pieces * kPiece, end = std::min(begin + kPiece, C);
      linear_few_rows(h + t.first * F, t.real, F, down_data + t.expert * C * F, F, at_expert(down_bias, t.expert, C),
                      out + t.first * C, C, begin, end);
    }
  }
}

void check_grouped(const at::Tensor& x, const ExpertRows& rows, const char* op, const char* name) {
  if (!x.defined() || x.dim() != 2 || x.size(0) != rows.padded)
    throw std::invalid_argument(fmt::format("[{}] {}: expected {} rows, got {}", op, name, rows.padded, describe(x)));
  check_floats(x, x.sizes(), op, name);
}

}  // namespace

ExpertRows sort_by_expert(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences) {
  if (experts.is_cuda() && cuda::table() != nullptr)
    return cuda::table()->sort_by_expert(experts, num_experts, capacity, sequences);
  const at::Tensor chosen = experts.contiguous();
  ExpertRows rows;
  rows.tokens = chosen.size(0), rows.slots = chosen.size(1), rows.experts = num_experts;
  const int32_t* expert = chosen.const_data_ptr<int32_t>();
  const int64_t pairs = chosen.numel(), sequence_pairs = pairs / std::max<int64_t>(sequences, 1);
  rows.first.assign(num_experts, 0), rows.count.assign(num_experts, 0), rows.place.assign(pairs, -1);
  std::vector<int64_t> taken(capacity > 0 ? num_experts : 0);
  for (int64_t i = 0; i < pairs; ++i) {
    if (expert[i] < 0 || expert[i] >= num_experts)
      throw std::invalid_argument(
          fmt::format("[sort_by_expert] experts[{}]: found {}, expected 0 to {}", i, expert[i], num_experts - 1));
    if (capacity > 0) {
      if (i % sequence_pairs == 0) std::fill(taken.begin(), taken.end(), 0);
      if (taken[expert[i]]++ >= capacity) continue;
    }
    rows.place[i] = static_cast<int32_t>(rows.count[expert[i]]++);
  }
  for (int64_t e = 0; e < num_experts; ++e) {
    rows.first[e] = rows.padded;
    rows.padded += rounded(rows.count[e]);
  }
  rows.pair.assign(rows.padded, -1);
  for (int64_t i = 0; i < pairs; ++i) {
    if (rows.place[i] < 0) continue;
    rows.place[i] += static_cast<int32_t>(rows.first[expert[i]]);
    rows.pair[rows.place[i]] = static_cast<int32_t>(i);
  }
  return rows;
}

at::Tensor grouped_linear_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                                  const ExpertRows& rows) {
  const char* op = "grouped_linear_forward";
  check_grouped(x, rows, op, "x");
  const int64_t in = x.size(1), out = weight.size(0) / rows.experts;
  check_floats(weight, {rows.experts * out, in}, op, "weight");
  if (bias.defined()) check_floats(bias, {rows.experts * out}, op, "bias");
  const at::Tensor y = at::empty({rows.padded, out}, x.options());
  const float *from = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(), *b = floats_or_null(bias);
  float* to = y.mutable_data_ptr<float>();
  const auto tiles = tiles_of(rows);
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < tiles.size(); ++i) {
    const Tile& t = tiles[i];
    if (b != nullptr) fill_rows(b + t.expert * out, out, t.rows, to + t.first * out);
    times_transposed(from + t.first * in, w + t.expert * out * in, to + t.first * out, t.rows, out, in, b != nullptr);
  }
  return y;
}

at::Tensor grouped_linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, const ExpertRows& rows) {
  const char* op = "grouped_linear_backward_input";
  check_grouped(dy, rows, op, "dy");
  const int64_t out = dy.size(1), in = weight.size(1);
  check_floats(weight, {rows.experts * out, in}, op, "weight");
  const at::Tensor dx = at::empty({rows.padded, in}, dy.options());
  const float *from = dy.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float* to = dx.mutable_data_ptr<float>();
  const auto tiles = tiles_of(rows);
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < tiles.size(); ++i) {
    const Tile& t = tiles[i];
    times(from + t.first * out, w + t.expert * out * in, to + t.first * in, t.rows, in, out);
  }
  return dx;
}

void grouped_linear_backward_weight_(const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& dy,
                                     const at::Tensor& x, const ExpertRows& rows) {
  const char* op = "grouped_linear_backward_weight_";
  check_grouped(dy, rows, op, "dy");
  const int64_t out = dy.size(1);
  const float* from = dy.const_data_ptr<float>();
  if (dweight.defined()) {
    check_grouped(x, rows, op, "x");
    const int64_t in = x.size(1);
    check_floats(dweight, {rows.experts * out, in}, op, "dweight");
    const float* inputs = x.const_data_ptr<float>();
    float* to = dweight.mutable_data_ptr<float>();
    const auto blocks = weight_blocks(rows, out);
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < blocks.size(); ++i) {
      const WeightBlock& b = blocks[i];
      const int64_t first = rows.first[b.expert];
      add_transposed_times(from + first * out + b.begin, out, inputs + first * in, to + (b.expert * out + b.begin) * in,
                           b.end - b.begin, in, rows.count[b.expert]);
    }
  }
  if (dbias.defined()) {
    check_floats(dbias, {rows.experts * out}, op, "dbias");
    float* to = dbias.mutable_data_ptr<float>();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t e = 0; e < rows.experts; ++e)
      linear_column_sums(from + rows.first[e] * out, rows.count[e], out, to + e * out, 0, out);
  }
}

ExpertsOutput experts_forward(const at::Tensor& x, const at::Tensor& weights, const ExpertRows& rows,
                              const ExpertWeights& w, const ExpertGate& gate, bool keep) {
  if (cuda::available(x)) return cuda::table()->experts_forward(x, weights, rows, w, gate, keep);
  const Shapes s = check_experts(x, weights, rows, w, "experts_forward");
  const int64_t C = s.C, F = s.F, N = s.N;
  const bool few = N <= kDecodeTokens;
  ExpertsOutput result;
  if (keep || few) result.gate_up = at::empty({rows.padded, 2 * F}, x.options());
  const at::Tensor outputs = at::empty({rows.padded, C}, x.options());
  result.y = at::empty({N, C}, x.options());
  const float *from = x.const_data_ptr<float>(), *up = w.gate_up.const_data_ptr<float>(),
              *down = w.down.const_data_ptr<float>();
  const float *up_bias = floats_or_null(w.gate_up_bias), *down_bias = floats_or_null(w.down_bias);
  float *kept = mutable_floats_or_null(result.gate_up), *out = outputs.mutable_data_ptr<float>(),
        *y = result.y.mutable_data_ptr<float>();
  const float* by = weights.const_data_ptr<float>();
  if (few) {
    const at::Tensor h = at::empty({rows.padded, F}, x.options());
    decode(from, rows, w, gate, s, kept, h.mutable_data_ptr<float>(), out);
    combine_rows(out, C, rows.place.data(), by, rows.slots, y, 0, N);
    return result;
  }
  const auto tiles = tiles_of(rows);
#pragma omp parallel
  {
    static thread_local std::vector<float> memory;
    float* const own = scratch(memory, kTileRows * (C + F + (keep ? 0 : 2 * F)));
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& t = tiles[i];
      float *inputs = own, *h = own + kTileRows * C;
      float* gate_up = keep ? kept + t.first * 2 * F : h + kTileRows * F;
      gather(from, C, rows, t, inputs);
      if (up_bias != nullptr) fill_rows(up_bias + t.expert * 2 * F, 2 * F, t.rows, gate_up);
      times_transposed(inputs, up + t.expert * 2 * F * C, gate_up, t.rows, 2 * F, C, up_bias != nullptr);
      GatedTile g = gated_of(gate, F);
      g.rows = t.rows, g.gate_up = gate_up, g.h = h;
      gated_tile(g);
      if (down_bias != nullptr) fill_rows(down_bias + t.expert * C, C, t.rows, out + t.first * C);
      times_transposed(h, down + t.expert * C * F, out + t.first * C, t.rows, C, F, down_bias != nullptr);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n += 16)
      combine_rows(out, C, rows.place.data(), by, rows.slots, y, n, std::min(n + 16, N));
  }
  return result;
}

ExpertsGradient experts_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weights,
                                 const ExpertRows& rows, const ExpertWeights& w, const ExpertGate& gate,
                                 const at::Tensor& gate_up, const ExpertWeights& gradients) {
  if (cuda::available(x)) return cuda::table()->experts_backward(dy, x, weights, rows, w, gate, gate_up, gradients);
  const char* op = "experts_backward";
  const Shapes s = check_experts(x, weights, rows, w, op);
  const int64_t C = s.C, F = s.F, N = s.N;
  check_floats(dy, {N, C}, op, "dy");
  check_floats(gate_up, {rows.padded, 2 * F}, op, "gate_up");
  if (gradients.gate_up.defined()) check_floats(gradients.gate_up, w.gate_up.sizes(), op, "gradient of gate_up");
  if (gradients.down.defined()) check_floats(gradients.down, w.down.sizes(), op, "gradient of down");
  ExpertsGradient result{at::empty({N, C}, x.options()), at::zeros({N, rows.slots}, x.options())};
  const at::Tensor hidden = at::empty({rows.padded, F}, x.options()), inputs = at::empty({rows.padded, C}, x.options());
  const float *dy_data = dy.const_data_ptr<float>(), *x_data = x.const_data_ptr<float>(),
              *by = weights.const_data_ptr<float>();
  const float *up = w.gate_up.const_data_ptr<float>(), *down = w.down.const_data_ptr<float>(),
              *down_bias = floats_or_null(w.down_bias);
  float *kept = gate_up.mutable_data_ptr<float>(), *h = hidden.mutable_data_ptr<float>(),
        *dinputs = inputs.mutable_data_ptr<float>();
  float *dx = result.dx.mutable_data_ptr<float>(), *dweights = result.dweights.mutable_data_ptr<float>();
  float *dup = mutable_floats_or_null(gradients.gate_up), *ddown = mutable_floats_or_null(gradients.down);
  float *dup_bias = mutable_floats_or_null(gradients.gate_up_bias),
        *ddown_bias = mutable_floats_or_null(gradients.down_bias);
  const auto tiles = tiles_of(rows);
  const auto up_blocks = dup != nullptr ? weight_blocks(rows, 2 * F) : std::vector<WeightBlock>();
  const auto down_blocks = ddown != nullptr ? weight_blocks(rows, C) : std::vector<WeightBlock>();
  const int64_t ups = up_blocks.size(), downs = down_blocks.size();
  const bool biased = dup_bias != nullptr || ddown_bias != nullptr;

#pragma omp parallel
  {
    static thread_local std::vector<float> memory;
    float* const own = scratch(memory, kTileRows * (C + 2));
    // gate_up becomes its gradient, h the weighted hidden values.
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& t = tiles[i];
      float *douts = own, *weight = own + kTileRows * C, *dots = weight + kTileRows, *dh = h + t.first * F;
      gather(dy_data, C, rows, t, douts);
      for (int64_t r = 0; r < t.rows; ++r) weight[r] = r < t.real ? by[rows.pair[t.first + r]] : 0.0f;
      times(douts, down + t.expert * C * F, dh, t.rows, F, C);
      GatedTile g = gated_of(gate, F);
      g.rows = t.rows, g.gate_up = kept + t.first * 2 * F, g.h = dh, g.dh = dh, g.weight = weight, g.dot = dots;
      gated_tile(g);
      for (int64_t r = 0; r < t.real; ++r) {
        if (down_bias != nullptr) dots[r] += dot_rows(douts + r * C, down_bias + t.expert * C, C);
        dweights[rows.pair[t.first + r]] = dots[r];
      }
      times(g.gate_up, up + t.expert * 2 * F * C, dinputs + t.first * C, t.rows, C, 2 * F);
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < ups + downs; ++i) {
      const bool of_up = i < ups;
      const WeightBlock& b = of_up ? up_blocks[i] : down_blocks[i - ups];
      for (int64_t r = 0; r < rows.count[b.expert]; r += kTileRows) {
        const int64_t real = std::min(kTileRows, rows.count[b.expert] - r);
        const Tile t{b.expert, rows.first[b.expert] + r, real, real};
        gather(of_up ? x_data : dy_data, C, rows, t, own);
        if (of_up) {
          add_transposed_times(kept + t.first * 2 * F + b.begin, 2 * F, own, dup + (b.expert * 2 * F + b.begin) * C,
                               b.end - b.begin, C, real);
        } else {
          add_transposed_times(own + b.begin, C, h + t.first * F, ddown + (b.expert * C + b.begin) * F, b.end - b.begin,
                               F, real);
        }
      }
    }
    if (biased) {
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t e = 0; e < s.E; ++e) {
        if (dup_bias != nullptr)
          linear_column_sums(kept + rows.first[e] * 2 * F, rows.count[e], 2 * F, dup_bias + e * 2 * F, 0, 2 * F);
        if (ddown_bias == nullptr) continue;
        std::fill_n(own, C, 0.0f);
        for (int64_t r = rows.first[e]; r < rows.first[e] + rows.count[e]; ++r)
          add_row(by[rows.pair[r]], dy_data + rows.pair[r] / rows.slots * C, own, C);
        add_row(1.0f, own, ddown_bias + e * C, C);
      }
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n += 16)
      combine_rows(dinputs, C, rows.place.data(), nullptr, rows.slots, dx, n, std::min(n + 16, N));
  }
  return result;
}

}  // namespace cairn::kernels
