// labels: quick
// Attention over chosen keys: the vector kernel against its plain twin in float64, and what its bits may depend on.
#include "models/kernels/sparse_attention.h"

#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/sparse_attention.h"
#include "tests/models/sparse_cases.h"

namespace cairn::kernels {
namespace {

using namespace testing;

at::Tensor cotangent(const SparseCase& c) { return random_floats({c.batch * c.length, c.heads * c.value_dim}, 9); }

// out, lse, dq, dk, dv; gradients go to slices of wider rows.
Tensors run(const SparseInputs& in, const at::Tensor& selected, const at::Tensor& dout) {
  const auto forward = sparse_attention_forward(in.q, in.k, in.v, selected, in.attention);
  const auto gradient = [](const at::Tensor& x) {
    return at::full({x.size(0), x.size(1) + 2, x.size(2)}, NAN).narrow(1, 1, x.size(1));
  };
  Tensors all{forward.out, forward.lse, gradient(in.q), gradient(in.k), gradient(in.v)};
  sparse_attention_backward(dout, in.q, in.k, in.v, all[0], all[1], selected, in.attention, all[2], all[3], all[4]);
  return all;
}

TEST(SparseAttention, EqualsTheTwinForwardAndBackward) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, true);
    const auto selected = selection_of(in), dout = cotangent(c);
    const auto fast = run(in, selected, dout);
    const auto twin = [&](const Tensors& x) {
      return Tensors{ref::sparse_attention(x[0], x[1], x[2], selected, in.attention)};
    };
    const auto expected = twin({in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble)})[0];
    const auto gradients = oracle_gradients(twin, {in.q, in.k, in.v}, {dout});
    expect_close(fast[0], expected, 1e-6, c.name() + " out");
    expect_close(fast[1], ref::sparse_attention_lse(in.q.to(at::kDouble), in.k.to(at::kDouble), selected, in.attention),
                 1e-6, c.name() + " lse");
    for (int i = 0; i < 3; ++i)
      expect_close(fast[2 + i], gradients[i], 3e-6, fmt::format("{} gradient {}", c.name(), i));
  }
}

TEST(SparseAttention, TwinsGradientsAreThoseOfFiniteDifferences) {
  const SparseCase c{.batch = 2,
                     .length = 9,
                     .index_heads = 2,
                     .index_dim = 3,
                     .heads = 4,
                     .kv_heads = 2,
                     .key_dim = 5,
                     .value_dim = 3,
                     .topk = 4,
                     .segments = true};
  const auto in = sparse_inputs(c, true);
  const auto selected = selection_of(in), dout = cotangent(c);
  const auto twin = [&](const Tensors& x) {
    return Tensors{ref::sparse_attention(x[0], x[1], x[2], selected, in.attention)};
  };
  expect_finite_differences(twin, {in.q, in.k, in.v}, {dout}, oracle_gradients(twin, {in.q, in.k, in.v}, {dout}), 1e-8,
                            c.name());
}

// With every key in the lists it is ordinary attention.
TEST(SparseAttention, EqualsDenseAttentionWhereAllAreChosen) {
  for (auto c : sparse_cases()) {
    c.topk = c.length, c.sinks = c.window = 0;
    const auto in = sparse_inputs(c, true);
    auto dense = in.attention;
    dense.segments = in.options.segments;
    const auto expected = ref::attention(in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble), dense);
    expect_close(sparse_attention_forward(in.q, in.k, in.v, selection_of(in), in.attention).out, expected, 2e-6,
                 c.name());
  }
}

TEST(SparseAttention, BitsAreTheSameEverywhere) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, true);
    const auto selected = selection_of(in), dout = cotangent(c);
    expect_same_bits_everywhere([&] { return run(in, selected, dout); }, c.name());
    const auto all = run(in, selected, dout);
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, b * c.length, c.length); };
      const auto one = run(sequence_of(in, b), rows(selected), rows(dout));
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_TRUE(same_bits(one[i], i == 1 ? all[i].narrow(0, b, 1) : rows(all[i]))) << c.name() << " output " << i;
    }
  }
}

// Columns of -1 are not there.
TEST(SparseAttention, BitsDoNotDependOnTheWidthOfLists) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, true);
    const auto selected = selection_of(in), dout = cotangent(c);
    const auto wider = at::cat({selected, at::full({selected.size(0), 21}, -1, selected.options())}, 1);
    const auto x = run(in, selected, dout), y = run(in, wider, dout);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(same_bits(x[i], y[i])) << c.name() << " output " << i;
  }
}

TEST(SparseAttention, DecodesWhatItTrained) {
  for (const auto& c : sparse_cases()) {
    const auto in = sequence_of(sparse_inputs(c, true), 0);
    const auto selected = selection_of(in);
    const auto out = sparse_attention_forward(in.q, in.k, in.v, selected, in.attention).out;
    for (int64_t end : {int64_t{1}, c.length / 2, c.length})
      for (int64_t count : {1, 5}) {
        if (count > end || end < 1) continue;
        const auto rows = [&](const at::Tensor& x) { return x.narrow(0, end - count, count); };
        for (int n : {1, 3}) {
          Threads threads(n);
          const auto decoded = sparse_attention_decode(rows(in.q), in.k, in.v, rows(selected), end, in.attention);
          EXPECT_TRUE(same_bits(decoded, rows(out))) << c.name() << " " << end << " " << count;
        }
        expect_close(ref::sparse_attention_decode(rows(in.q), in.k, in.v, rows(selected), end, in.attention), rows(out),
                     2e-6, c.name());
      }
  }
}

TEST(SparseAttention, StandsEmptyListsAndLargeScores) {
  const SparseCase c{.batch = 1,
                     .length = 40,
                     .index_heads = 2,
                     .index_dim = 4,
                     .heads = 2,
                     .kv_heads = 1,
                     .key_dim = 16,
                     .value_dim = 16,
                     .topk = 8};
  auto in = sparse_inputs(c, true);
  auto selected = selection_of(in);
  selected.narrow(0, 5, 2).fill_(-1);
  const auto dout = cotangent(c);
  const auto fast = run(in, selected, dout);
  EXPECT_TRUE(fast[0].narrow(0, 5, 2).eq(0).all().item<bool>());
  EXPECT_TRUE(fast[2].narrow(0, 5, 2).eq(0).all().item<bool>());
  for (const auto& x : {fast[0], fast[2], fast[3], fast[4]}) EXPECT_TRUE(x.isfinite().all().item<bool>());
  in.attention.scale = 40;
  for (const auto& x : {run(in, selected, dout)[0], run(in, selected, dout)[3]})
    EXPECT_TRUE(x.isfinite().all().item<bool>());
}

TEST(SparseAttention, RefusesWhatDoesNotFit) {
  const auto x = at::randn({8, 2, 16});
  const auto good = at::arange(8, at::kInt).unsqueeze(1);
  const AttentionOptions plain;
  EXPECT_NO_THROW(sparse_attention_forward(x, x, x, good, plain));
  const auto refuses = [&](const at::Tensor& selected, const AttentionOptions& options) {
    return message_of([&] { sparse_attention_forward(x, x, x, selected, options); });
  };
  EXPECT_NE(refuses(good + 1, plain).find("row 0"), std::string::npos);                  // the future
  EXPECT_NE(refuses(good - 2, plain).find("row 0"), std::string::npos);                  // before the start
  EXPECT_NE(refuses(at::cat({good, good}, 1), plain).find("row 0"), std::string::npos);  // twice
  EXPECT_NE(refuses(good.to(at::kLong), plain).find("int32"), std::string::npos);
  EXPECT_NE(refuses(good, {.window = 4}).find("window"), std::string::npos);
  EXPECT_NE(refuses(good, {.softcap = 4}).find("soft"), std::string::npos);
  EXPECT_NE(refuses(good, {.dropout = 0.1}).find("dropout"), std::string::npos);
  EXPECT_NE(refuses(good, {.batch = 3}).find("sequences"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
