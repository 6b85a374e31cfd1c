// labels: quick
// What the lightning indexer learns from: the vector kernel against autograd through the written formula in float64.
#include "models/kernels/index_loss.h"

#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/index_loss.h"
#include "models/kernels/ref/sparse_attention.h"
#include "tests/models/sparse_cases.h"

namespace cairn::kernels {
namespace {

using namespace testing;

// Attention over the lists, or over all candidates where there are none.
MassSource source_of(const SparseInputs& in, const at::Tensor& selected) {
  auto options = in.attention;
  options.segments = in.options.segments;
  const auto lse = selected.defined() ? ref::sparse_attention_lse(in.q, in.k, selected, options)
                                      : ref::attention_lse(in.q, in.k, options);
  return {in.q, in.k, lse, in.attention.scale};
}

std::vector<MassSource> wide(std::vector<MassSource> sources) {
  for (auto& s : sources) s.q = s.q.to(at::kDouble), s.k = s.k.to(at::kDouble), s.lse = s.lse.to(at::kDouble);
  return sources;
}

// Two attentions of different shapes, as layers that share a selection may have.
std::vector<MassSource> two_sources(const SparseInputs& in, const SparseCase& c, const at::Tensor& selected) {
  auto other = in;
  const int64_t N = c.batch * c.length;
  other.q = random_floats({N, 3, 12}, 31), other.k = random_floats({N, 1, 12}, 32);
  other.attention.scale = 0.2;
  return {source_of(in, selected), source_of(other, selected)};
}

void expect_equal(const SparseCase& c, const SparseInputs& in, const at::Tensor& selected,
                  const std::vector<MassSource>& sources, const std::string& name) {
  const double coefficient = 0.37;
  const auto fast = index_loss(in.index_q, in.index_k, in.index_w, selected, sources, in.options, coefficient);
  const auto exact = ref::index_loss(in.index_q.to(at::kDouble), in.index_k.to(at::kDouble), in.index_w.to(at::kDouble),
                                     selected, wide(sources), in.options, coefficient);
  EXPECT_NEAR(fast.kl, exact.kl, 3e-6 * (1 + std::abs(exact.kl))) << name;
  EXPECT_EQ(fast.queries, exact.queries) << name;
  expect_close(fast.dq, exact.dq, 5e-6, name + " dq");
  expect_close(fast.dk, exact.dk, 5e-6, name + " dk");
  expect_close(fast.dw, exact.dw, 5e-6, name + " dw");
  EXPECT_EQ(fast.recall_queries, exact.recall_queries) << name;
  EXPECT_NEAR(fast.best_recall, exact.best_recall, 1e-5 * (1 + exact.best_recall)) << name;
  EXPECT_NEAR(fast.recall, exact.recall, 1e-5 * (1 + exact.recall)) << name;
  // Without gradients the same loss.
  const auto alone = index_loss(in.index_q, in.index_k, in.index_w, selected, sources, in.options, 0);
  EXPECT_EQ(alone.kl, fast.kl) << name;
  EXPECT_FALSE(alone.dq.defined() || alone.dk.defined() || alone.dw.defined()) << name;
}

// Dot products near zero may round to either side of ReLU's corner; those of small integers are exact.
TEST(IndexLoss, EqualsAutogradOverListedKeys) {
  for (const auto& c : sparse_cases()) {
    auto in = sparse_inputs(c, true);
    const auto selected = selection_of(in);
    in.index_w = in.index_w * 0.05 + 0.01;
    expect_equal(c, in, selected, {source_of(in, selected)}, c.name());
    expect_equal(c, in, selected, two_sources(in, c, selected), c.name() + ", two sources");
  }
}

TEST(IndexLoss, EqualsAutogradOverAllCandidates) {
  for (const auto& c : sparse_cases()) {
    auto in = sparse_inputs(c, true);
    in.index_w = in.index_w * 0.0625;  // exact too, so that the choice and its recall are
    expect_equal(c, in, {}, {source_of(in, {})}, c.name());
    expect_equal(c, in, {}, two_sources(in, c, {}), c.name() + ", two sources");
  }
}

TEST(IndexLoss, TwinsGradientsAreThoseOfFiniteDifferences) {
  const SparseCase c{.batch = 2,
                     .length = 9,
                     .index_heads = 3,
                     .index_dim = 4,
                     .heads = 4,
                     .kv_heads = 2,
                     .key_dim = 5,
                     .value_dim = 3,
                     .topk = 4,
                     .segments = true};
  const auto in = sparse_inputs(c, false);
  for (const at::Tensor& selected : {at::Tensor(), selection_of(in)}) {
    const auto sources = wide({source_of(in, selected)});
    const auto twin = [&](const Tensors& x) {
      return Tensors{ref::index_kl(x[0], x[1], x[2], selected, sources, in.options)};
    };
    const Tensors inputs{in.index_q, in.index_k, in.index_w}, ones{at::ones({c.batch, c.length})};
    expect_finite_differences(twin, inputs, ones, oracle_gradients(twin, inputs, ones), 1e-7, c.name());
  }
}

// A query's gradient with respect to its scores adds up to zero, and a perfect indexer has none.
TEST(IndexLoss, VanishesWhereTheScoresAreTheAttention) {
  const int64_t T = 50, D = 16;
  const auto q = random_floats({T, 1, D}, 1).abs(), k = random_floats({T, 1, D}, 2).abs();  // no ReLU cuts
  AttentionOptions options{.scale = 0.25};
  const MassSource source{q, k, ref::attention_lse(q, k, options), options.scale};
  const auto loss = index_loss(q, k.squeeze(1), at::full({T, 1}, options.scale), {}, {source}, {}, 1.0);
  EXPECT_NEAR(loss.kl, 0, 1e-4);
  EXPECT_EQ(loss.queries, T - 1);
  for (const auto& x : {loss.dq, loss.dk, loss.dw}) EXPECT_LT(x.abs().max().item<double>(), 1e-4);
}

TEST(IndexLoss, BitsAreTheSameEverywhere) {
  for (const auto& c : sparse_cases()) {
    auto in = sparse_inputs(c, true);
    const auto lists = selection_of(in);
    in.index_w = in.index_w * 0.0625;
    for (const at::Tensor& selected : {at::Tensor(), lists}) {
      const auto sources = two_sources(in, c, selected);
      const auto run = [&](const SparseInputs& x, const at::Tensor& rows, const std::vector<MassSource>& s) {
        const auto loss = index_loss(x.index_q, x.index_k, x.index_w, rows, s, x.options, 0.5);
        return Tensors{loss.dq, loss.dk, loss.dw, at::tensor({loss.kl, loss.recall, loss.best_recall}, at::kDouble)};
      };
      expect_same_bits_everywhere([&] { return run(in, selected, sources); }, c.name());
      const auto all = run(in, selected, sources);
      for (int64_t b = 0; b < c.batch; ++b) {
        const auto part = [&](const at::Tensor& x) { return x.narrow(0, b * c.length, c.length); };
        auto own = sources;
        for (auto& s : own) s.q = part(s.q), s.k = part(s.k), s.lse = s.lse.narrow(0, b, 1);
        const auto one = run(sequence_of(in, b), selected.defined() ? part(selected) : selected, own);
        for (int i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(one[i], part(all[i]))) << c.name() << " output " << i;
      }
    }
  }
}

TEST(IndexLoss, SelectedMassEqualsTheTwin) {
  for (const auto& c : sparse_cases()) {
    const auto in = sparse_inputs(c, true);
    const auto selected = selection_of(in);
    const auto source = source_of(in, {});
    int64_t fast_queries = -1, exact_queries = -2;
    const auto fast = selected_mass(source, selected, in.options, &fast_queries);
    const auto exact = ref::selected_mass(wide({source})[0], selected, in.options, &exact_queries);
    EXPECT_EQ(fast_queries, exact_queries) << c.name();
    expect_close(fast, exact, 3e-6, c.name());
  }
}

TEST(IndexLoss, RefusesWhatDoesNotFit) {
  const auto in = sparse_inputs({.length = 8,
                                 .index_heads = 2,
                                 .index_dim = 4,
                                 .heads = 2,
                                 .kv_heads = 2,
                                 .key_dim = 8,
                                 .value_dim = 8,
                                 .topk = 4},
                                false);
  const auto source = source_of(in, {});
  const auto loss = [&](const at::Tensor& selected, const std::vector<MassSource>& sources) {
    return message_of([&] { index_loss(in.index_q, in.index_k, in.index_w, selected, sources, in.options, 1); });
  };
  EXPECT_EQ(loss({}, {source}), "");
  EXPECT_NE(loss({}, {}).find("no source"), std::string::npos);
  auto wrong = source;
  wrong.lse = wrong.lse.narrow(2, 0, 7);
  EXPECT_NE(loss({}, {wrong}).find("lse"), std::string::npos);
  EXPECT_NE(loss(at::ones({8, 2}, at::kInt), {source}).find("row 0"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
