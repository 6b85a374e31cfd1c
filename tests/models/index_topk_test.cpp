// labels: quick
// The lightning indexer's choice: the vector kernel against its plain twin, and what its bits may depend on.
#include "models/kernels/index_topk.h"

#include <limits>
#include <set>

#include "tests/models/sparse_cases.h"

namespace cairn::kernels {
namespace {

using namespace testing;

at::Tensor choose(const SparseInputs& in) { return index_topk(in.index_q, in.index_k, in.index_w, in.options); }

// Scores of small integers are exact, and many are equal: the sets must be the same to the last tie.
TEST(IndexTopk, EqualsTheTwinTiesIncluded) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, /*whole=*/true);
    const auto chosen = choose(in);
    EXPECT_TRUE(at::equal(chosen, selection_of(in))) << c.name();
    EXPECT_EQ(chosen.size(1), std::min(c.topk, c.length));
  }
}

// Rounding may turn two nearly equal keys round, but never take a clearly worse one.
TEST(IndexTopk, TakesTheBestOfRandomScores) {
  for (const auto& c : sparse_cases()) {
    auto in = sparse_inputs(c, /*whole=*/false);
    const auto chosen = choose(in);
    for (auto* x : {&in.index_q, &in.index_k, &in.index_w}) *x = x->to(at::kDouble);
    const auto scores = ref::index_scores(in.index_q, in.index_k, in.index_w, in.options);
    const auto expected = selection_of(in);
    const auto values = [&](const at::Tensor& lists) {
      const auto index = lists.to(at::kLong).reshape({c.batch, c.length, lists.size(1)});
      const auto v = scores.gather(2, index.clamp_min(0)).masked_fill(index.lt(0), -1e9);
      return std::get<0>(at::sort(v, -1));
    };
    EXPECT_TRUE(at::equal(chosen.ge(0).sum(1), expected.ge(0).sum(1))) << c.name();
    expect_close(values(chosen), values(expected), 1e-6, c.name());
  }
}

// All scores zero, all equal, all negative zero, none a number: the first positions, beside those always chosen.
TEST(IndexTopk, LowerPositionsWinTies) {
  const int64_t T = 400, k = 37;
  for (double weight : {0.0, -1.0, 1.0, static_cast<double>(NAN)}) {
    const auto q = at::ones({T, 2, 4}), w = at::full({T, 2}, weight);
    for (const auto& keys : {at::zeros({T, 4}), at::full({T, 4}, -1.0), at::ones({T, 4})}) {
      const auto chosen = index_topk(q, keys, w, {.topk = k, .sinks = 2, .window = 3});
      const auto row = chosen[T - 1].to(at::kLong);
      std::vector<int64_t> expected;
      for (int64_t i = 0; i < k - 3; ++i) expected.push_back(i);
      for (int64_t i = T - 3; i < T; ++i) expected.push_back(i);
      EXPECT_TRUE(at::equal(row, at::tensor(expected, at::kLong))) << weight;
    }
  }
}

TEST(IndexTopk, KeepsSinksAndWindow) {
  for (const auto& c : sparse_cases()) {
    if (c.sinks + c.window == 0) continue;
    const auto in = sparse_inputs(c, false);
    const auto chosen = choose(in), candidates = ref::index_candidates(c.batch * c.length, in.options, at::kCPU);
    for (int64_t n = 0; n < c.batch * c.length; ++n) {
      std::set<int32_t> row;
      for (int64_t i = 0; i < chosen.size(1); ++i) row.insert(chosen[n][i].item<int32_t>());
      const int64_t t = n % c.length, count = candidates[n / c.length][t].sum().item<int64_t>(), first = t - count + 1;
      for (int64_t s = first; s < std::min(first + c.sinks, t + 1); ++s) ASSERT_TRUE(row.count(s)) << c.name() << n;
      for (int64_t s = std::max(first, t - c.window + 1); s <= t; ++s) ASSERT_TRUE(row.count(s)) << c.name() << n;
      if (n > 300) break;
    }
  }
}

TEST(IndexTopk, BitsAreTheSameEverywhere) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, false);
    Tensors expected;
    {
      Threads one(1);
      expected = {choose(in)};
    }
    for (int n : {2, 3, 4}) {
      Threads threads(n);
      EXPECT_TRUE(at::equal(choose(in), expected[0])) << c.name() << ", threads " << n;
    }
    if ((hwy::SupportedTargets() & HWY_AVX3) && (hwy::SupportedTargets() & HWY_AVX2)) {
      OnlyTarget avx2(HWY_AVX2);
      EXPECT_TRUE(at::equal(choose(in), expected[0])) << c.name() << ", AVX2";
    }
    if (hwy::SupportedTargets() & HWY_SSE4) {  // rounds otherwise: exact scores alone
      const auto exact = sparse_inputs(c, true);
      const auto wide = choose(exact);
      OnlyTarget sse4(HWY_SSE4);
      EXPECT_TRUE(at::equal(choose(exact), wide)) << c.name() << ", SSE4";
    }
    for (int64_t b = 0; b < c.batch; ++b)
      EXPECT_TRUE(at::equal(choose(sequence_of(in, b)), expected[0].narrow(0, b * c.length, c.length))) << c.name();
  }
}

// Row by row and in chunks: the sets that the whole sequence gives.
TEST(IndexTopk, DecodesWhatItChose) {
  for (const auto& c : sparse_cases()) {
    if (c.segments) continue;
    auto in = sequence_of(sparse_inputs(c, false), 0);
    const auto all = choose(in);
    for (int64_t end : {int64_t{1}, c.length / 2, c.length - 1, c.length})
      for (int64_t count : {1, 2, 19, 70}) {
        if (count > end || end < 1) continue;
        const auto rows = [&](const at::Tensor& x) { return x.narrow(0, end - count, count); };
        const auto decoded = index_topk_decode(rows(in.index_q), in.index_k, rows(in.index_w), end, in.options);
        const auto twin = ref::index_topk_decode(rows(in.index_q).to(at::kDouble), in.index_k.to(at::kDouble),
                                                 rows(in.index_w).to(at::kDouble), end, in.options);
        EXPECT_EQ(decoded.sizes(), twin.sizes());
        EXPECT_TRUE(at::equal(decoded, rows(all).narrow(1, 0, decoded.size(1))))
            << c.name() << " " << end << " " << count;
        EXPECT_TRUE(rows(all).narrow(1, decoded.size(1), all.size(1) - decoded.size(1)).eq(-1).all().item<bool>());
      }
  }
}

TEST(IndexTopk, RefusesWhatDoesNotFit) {
  const auto q = at::randn({8, 2, 4}), k = at::randn({8, 4}), w = at::randn({8, 2});
  EXPECT_THROW(index_topk(q, k, w, {.topk = 0}), std::invalid_argument);
  EXPECT_THROW(index_topk(q, k, w, {.topk = 4, .sinks = 2, .window = 3}), std::invalid_argument);
  EXPECT_THROW(index_topk(q, k.narrow(1, 0, 3), w, {.topk = 4}), std::invalid_argument);
  EXPECT_THROW(index_topk(q.to(at::kDouble), k, w, {.topk = 4}), std::invalid_argument);
  EXPECT_THROW(index_topk(q, k, w, {.batch = 3, .topk = 4}), std::invalid_argument);
  EXPECT_THROW(index_topk_decode(q, k, w, 9, {.topk = 4}), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::kernels
