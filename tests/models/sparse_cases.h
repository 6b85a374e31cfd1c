// Inputs of the tests of sparse attention and of its indexer.
#pragma once

#include <cmath>
#include <string>

#include "models/kernels/index_loss.h"
#include "models/kernels/ref/index_topk.h"
#include "models/kernels/sparse_attention.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels::testing {

struct SparseCase {
  int64_t batch = 1, length = 1;
  int64_t index_heads = 1, index_dim = 1;  // J, D of the indexer
  int64_t heads = 1, kv_heads = 1, key_dim = 1, value_dim = 1;
  int64_t topk = 1, sinks = 0, window = 0;
  bool segments = false;

  std::string name() const {
    return fmt::format("B{} T{} J{} D{} H{} K{} {}x{} topk {} sinks {} window {}{}", batch, length, index_heads,
                       index_dim, heads, kv_heads, key_dim, value_dim, topk, sinks, window,
                       segments ? " segments" : "");
  }
};

inline const std::vector<SparseCase>& sparse_cases() {
  static const std::vector<SparseCase> all = {
      {},
      {.batch = 3,
       .length = 5,
       .index_heads = 2,
       .index_dim = 6,
       .heads = 2,
       .kv_heads = 1,
       .key_dim = 6,
       .value_dim = 3,
       .topk = 2},
      {.batch = 2,
       .length = 33,
       .index_heads = 3,
       .index_dim = 20,
       .heads = 3,
       .kv_heads = 3,
       .key_dim = 20,
       .value_dim = 36,
       .topk = 64},
      {.batch = 2,
       .length = 64,
       .index_heads = 4,
       .index_dim = 32,
       .heads = 4,
       .kv_heads = 2,
       .key_dim = 32,
       .value_dim = 32,
       .topk = 16},
      {.batch = 2,
       .length = 130,
       .index_heads = 4,
       .index_dim = 32,
       .heads = 8,
       .kv_heads = 8,
       .key_dim = 48,
       .value_dim = 32,
       .topk = 17},
      {.batch = 1,
       .length = 131,
       .index_heads = 5,
       .index_dim = 16,
       .heads = 7,
       .kv_heads = 1,
       .key_dim = 80,
       .value_dim = 64,
       .topk = 31,
       .sinks = 3,
       .window = 9},
      {.batch = 2,
       .length = 150,
       .index_heads = 4,
       .index_dim = 24,
       .heads = 6,
       .kv_heads = 2,
       .key_dim = 40,
       .value_dim = 130,
       .topk = 20,
       .sinks = 4,
       .window = 8,
       .segments = true},
      {.batch = 1,
       .length = 200,
       .index_heads = 1,
       .index_dim = 8,
       .heads = 2,
       .kv_heads = 2,
       .key_dim = 16,
       .value_dim = 16,
       .topk = 1},
      {.batch = 2,
       .length = 97,
       .index_heads = 7,
       .index_dim = 5,
       .heads = 2,
       .kv_heads = 1,
       .key_dim = 9,
       .value_dim = 7,
       .topk = 8,
       .window = 8,
       .segments = true},
      // Long enough for a threshold that rises several times, several key blocks and several pieces.
      {.batch = 1,
       .length = 1100,
       .index_heads = 2,
       .index_dim = 16,
       .heads = 2,
       .kv_heads = 1,
       .key_dim = 144,
       .value_dim = 128,
       .topk = 70,
       .sinks = 2,
       .window = 5},
      {.batch = 1,
       .length = 700,
       .index_heads = 8,
       .index_dim = 64,
       .heads = 4,
       .kv_heads = 4,
       .key_dim = 24,
       .value_dim = 24,
       .topk = 300,
       .segments = true},
  };
  return all;
}

struct SparseInputs {
  at::Tensor index_q, index_k, index_w;  // of the indexer
  at::Tensor q, k, v;
  IndexOptions options;
  AttentionOptions attention;
};

// Documents of 1, 2, 4, ... rows, cut by the sequence: many of one token.
inline at::Tensor documents(int64_t batch, int64_t length) {
  auto segment = at::empty({batch * length}, at::kInt);
  int32_t* to = segment.data_ptr<int32_t>();
  for (int64_t n = 0, id = 0, left = 1, size = 1; n < batch * length; ++n) {
    if (n % length == 0) id = 0, left = size = 1 + n / length;
    to[n] = static_cast<int32_t>(id);
    if (--left == 0) ++id, left = size = size * 2 % 331 + 1;
  }
  return segment;
}

// whole: small integers in the indexer, so that scores are exact whatever the order of addition, and often equal.
inline SparseInputs sparse_inputs(const SparseCase& c, bool whole) {
  const int64_t N = c.batch * c.length;
  const auto indexer = [&](at::IntArrayRef shape, uint64_t seed) {
    const auto x = random_floats(shape, seed);
    return whole ? (x * 1.2).round() : x;
  };
  SparseInputs in;
  in.index_q = indexer({N, c.index_heads, c.index_dim}, 1);
  in.index_k = indexer({N, c.index_dim}, 2);
  in.index_w = indexer({N, c.index_heads}, 3);
  // Views of wider rows, as slices of fused products are.
  const auto view = [&](int64_t heads, int64_t dim, uint64_t seed) {
    return random_floats({N, heads + 1, dim}, seed).narrow(1, 1, heads);
  };
  in.q = view(c.heads, c.key_dim, 4), in.k = view(c.kv_heads, c.key_dim, 5), in.v = view(c.kv_heads, c.value_dim, 6);
  in.options = {.batch = c.batch, .topk = c.topk, .sinks = c.sinks, .window = c.window};
  if (c.segments) in.options.segments = documents(c.batch, c.length);
  in.attention.batch = c.batch;
  in.attention.scale = 1.3 / std::sqrt(static_cast<double>(c.key_dim));
  return in;
}

// Sequence b of the batch, alone.
inline SparseInputs sequence_of(const SparseInputs& in, int64_t b) {
  const int64_t length = in.q.size(0) / in.options.batch;
  const auto rows = [&](const at::Tensor& x) { return x.defined() ? x.narrow(0, b * length, length) : x; };
  SparseInputs one = in;
  for (auto* x : {&one.index_q, &one.index_k, &one.index_w, &one.q, &one.k, &one.v, &one.options.segments})
    *x = rows(*x);
  one.options.batch = one.attention.batch = 1;
  return one;
}

// Lists by the plain twin.
inline at::Tensor selection_of(const SparseInputs& in) {
  return ref::index_topk(in.index_q, in.index_k, in.index_w, in.options);
}

}  // namespace cairn::kernels::testing
