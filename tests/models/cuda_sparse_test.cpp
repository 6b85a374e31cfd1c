// labels: quick
// Sparse attention and its indexer on a GPU against their plain twins; cuda_emulated_sparse_test.cpp runs the same
// kernels on a CPU.
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/index_loss.h"
#include "models/kernels/ref/sparse_attention.h"
#include "tests/models/cuda_checks.h"
#include "tests/models/sparse_cases.h"

namespace cairn::kernels {
namespace {

using namespace testing;

class CudaSparse : public CudaTest {};

SparseInputs in_type(SparseInputs in, at::ScalarType type) {
  for (auto* x : {&in.index_q, &in.index_k, &in.index_w, &in.q, &in.k, &in.v}) *x = x->to(type);
  return in;
}
SparseInputs placed(SparseInputs in) {
  for (auto* x : {&in.index_q, &in.index_k, &in.index_w, &in.q, &in.k, &in.v, &in.options.segments}) *x = on_gpu(*x);
  in.attention.segments = on_gpu(in.attention.segments);
  return in;
}

// out, lse, dq, dk, dv.
Tensors attention_on(const cuda::Table* table, const SparseInputs& in, const at::Tensor& selected,
                     const at::Tensor& dout) {
  const auto forward = table->sparse_attention_forward(in.q, in.k, in.v, selected, in.attention);
  const auto gradient = [](const at::Tensor& x) {
    return at::full({x.size(0), x.size(1) + 2, x.size(2)}, NAN, x.options()).narrow(1, 1, x.size(1));
  };
  Tensors all{forward.out, forward.lse, gradient(in.q), gradient(in.k), gradient(in.v)};
  table->sparse_attention_backward(dout, in.q, in.k, in.v, all[0], all[1], selected, in.attention, all[2], all[3],
                                   all[4]);
  for (auto& x : all) x = x.cpu();
  return all;
}

TEST_F(CudaSparse, AttentionEqualsItsTwin) {
  auto cases = sparse_cases();
  cases.push_back({.batch = 2, .length = 300, .heads = 16, .key_dim = 576, .value_dim = 512, .topk = 64});
  for (const auto& c : cases)
    for (auto type : {at::kFloat, at::kBFloat16}) {
      auto in = in_type(sparse_inputs(c, true), type);
      if (c.key_dim == 576) in.v = in.k.narrow(2, 0, c.value_dim);
      const auto selected = selection_of(in), dout = random_floats({in.q.size(0), c.heads * c.value_dim}, 9).to(type);
      auto here = placed(in);
      if (c.key_dim == 576) here.v = here.k.narrow(2, 0, c.value_dim);
      const auto got = attention_on(table, here, on_gpu(selected), on_gpu(dout));
      const auto twin = [&](const Tensors& x) {
        return Tensors{ref::sparse_attention(x[0], x[1], x[2], selected, in.attention)};
      };
      const std::string name = fmt::format("{} {}", c.name(), c10::toString(type));
      const auto wide = in_type(in, at::kDouble);
      const double bound = 2 * tolerance(type);
      expect_close(got[0], twin({wide.q, wide.k, wide.v})[0], bound, name + " out");
      expect_close(got[1], ref::sparse_attention_lse(wide.q, wide.k, selected, in.attention), 4e-6, name + " lse");
      const auto gradients = oracle_gradients(twin, {in.q, in.k, in.v}, {dout});
      for (int i = 0; i < 3; ++i)
        expect_close(got[2 + i], gradients[i], 2 * bound, fmt::format("{} gradient {}", name, i));

      const auto again = attention_on(table, here, on_gpu(selected), on_gpu(dout));
      for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], again[i])) << name << " output " << i;
      if (type != at::kFloat) continue;
      auto dense = in.attention;
      dense.segments = in.options.segments;
      auto dense_here = dense;
      dense_here.segments = on_gpu(dense.segments);
      expect_close(table->attention_lse(here.q, here.k, dense_here).cpu(), ref::attention_lse(wide.q, wide.k, dense),
                   4e-6, name + " lse of all");
    }
}

TEST_F(CudaSparse, ChoosesWhatTheCpuChooses) {
  for (const auto& c : sparse_cases())
    for (bool whole : {true, false}) {
      const auto in = sparse_inputs(c, whole);
      const auto here = placed(in);
      const auto chosen = index_topk(in.index_q, in.index_k, in.index_w, in.options);
      EXPECT_TRUE(table->index_topk(here.index_q, here.index_k, here.index_w, here.options).cpu().equal(chosen))
          << c.name();
      const auto one = sequence_of(in, 0), one_here = placed(one);
      const int64_t n = std::min<int64_t>(3, c.length);
      const auto last = [&](const at::Tensor& x) { return x.narrow(0, c.length - n, n); };
      EXPECT_TRUE(
          table
              ->index_topk_decode(last(one_here.index_q), one_here.index_k, last(one_here.index_w), c.length,
                                  one_here.options)
              .cpu()
              .equal(index_topk_decode(last(one.index_q), one.index_k, last(one.index_w), c.length, one.options)))
          << c.name();
    }
}

TEST_F(CudaSparse, LossEqualsItsTwin) {
  for (const auto& c : sparse_cases())
    for (bool listed : {true, false})
      for (auto type : {at::kFloat, at::kBFloat16}) {
        const auto in = in_type(sparse_inputs(c, true), type), wide = in_type(in, at::kDouble), here = placed(in);
        const std::string name = fmt::format("{} {} {}", c.name(), listed, c10::toString(type));
        const at::Tensor selected = listed ? selection_of(in) : at::Tensor();
        auto dense = in.attention;
        dense.segments = in.options.segments;
        const auto lse = listed ? ref::sparse_attention_lse(wide.q, wide.k, selected, in.attention)
                                : ref::attention_lse(wide.q, wide.k, dense);
        const auto expected = ref::index_loss(wide.index_q, wide.index_k, wide.index_w, selected,
                                              {{wide.q, wide.k, lse, in.attention.scale}}, in.options, 0.37);
        const std::vector<MassSource> sources{{here.q, here.k, on_gpu(lse.to(at::kFloat)), in.attention.scale}};
        const auto run = [&] {
          return table->index_loss(here.index_q, here.index_k, here.index_w, on_gpu(selected), sources, here.options,
                                   0.37);
        };
        const auto got = run(), again = run();
        EXPECT_NEAR(got.kl, expected.kl, 1e-5 * (1 + expected.kl)) << name;
        EXPECT_EQ(got.queries, expected.queries) << name;
        EXPECT_EQ(got.recall_queries, expected.recall_queries) << name;
        EXPECT_NEAR(got.recall, expected.recall, 1e-5 * (1 + expected.recall)) << name;
        EXPECT_NEAR(got.best_recall, expected.best_recall, 1e-5 * (1 + expected.best_recall)) << name;
        const double bound = type == at::kFloat ? 5e-6 : 1e-2;
        expect_close(got.dq.cpu(), expected.dq, bound, name + " dq");
        expect_close(got.dk.cpu(), expected.dk, bound, name + " dk");
        expect_close(got.dw.cpu(), expected.dw, bound, name + " dw");
        EXPECT_EQ(got.kl, again.kl) << name;
        for (auto member : {&IndexLoss::dq, &IndexLoss::dk, &IndexLoss::dw})
          EXPECT_TRUE(same_bits((got.*member).cpu(), (again.*member).cpu())) << name;
      }
}

TEST_F(CudaSparse, DecodesWhatItTrained) {
  const SparseCase c{.length = 150, .heads = 6, .kv_heads = 2, .key_dim = 40, .value_dim = 72, .topk = 20};
  const auto in = placed(sparse_inputs(c, true));
  const auto selected = table->index_topk(in.index_q, in.index_k, in.index_w, in.options);
  const auto out = table->sparse_attention_forward(in.q, in.k, in.v, selected, in.attention).out;
  for (int64_t n : {1, 4}) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, 120 - n, n).contiguous(); };
    const auto decoded = table->sparse_attention_decode(rows(in.q), in.k, in.v, rows(selected), 120, in.attention);
    EXPECT_TRUE(same_bits(decoded.cpu(), rows(out).cpu())) << n;
  }
}

TEST_F(CudaSparse, RefusesWhatItCannotRead) {
  const auto in = placed(sparse_inputs({.length = 8, .key_dim = 4, .value_dim = 4, .topk = 2}, true));
  const auto lists = at::zeros({8, 2}, in.q.options().dtype(at::kInt));
  EXPECT_NE(message_of([&] {
              table->sparse_attention_forward(in.q, in.k, in.v, lists.cpu(), in.attention);
            }).find("selected: expected"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              table->sparse_attention_forward(in.q, in.k.to(at::kBFloat16), in.v, lists, in.attention);
            }).find("k: expected Float"),
            std::string::npos);
  auto many = in.options;
  many.sinks = 3;
  EXPECT_NE(message_of([&] { table->index_topk(in.index_q, in.index_k, in.index_w, many); }).find("3 sinks"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
