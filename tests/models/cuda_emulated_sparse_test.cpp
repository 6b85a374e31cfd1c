// labels: quick
// The CUDA kernels of sparse attention and of its indexer, run on the CPU (cuda_emulator.h), against their plain twins.
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/index_loss.h"
#include "models/kernels/ref/index_topk.h"
#include "models/kernels/ref/sparse_attention.h"
#include "tests/models/sparse_cases.h"
// After them:
#include "tests/models/cuda_emulator.h"
//
#include "models/kernels/cuda/index_loss.cu"
#include "models/kernels/cuda/index_topk.cu"
#include "models/kernels/cuda/key_sums.cu"
#include "models/kernels/cuda/sparse_attention.cu"

namespace cairn::kernels {
namespace {

using namespace testing;
using emulator::Order;

cuda::Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16;
}
double tolerance(at::ScalarType type) { return type == at::kFloat ? 3e-6 : 1e-2; }

// Workspaces are full of NaN: whatever is read was written before.
at::Tensor workspace(int64_t floats) { return at::full({floats}, NAN); }

SparseInputs in_type(SparseInputs in, at::ScalarType type) {
  for (auto* x : {&in.index_q, &in.index_k, &in.index_w, &in.q, &in.k, &in.v}) *x = x->to(type);
  return in;
}
SparseInputs in_double(const SparseInputs& in) { return in_type(in, at::kDouble); }

cuda::SparseAttention attention_job(const SparseInputs& in, const at::Tensor& selected) {
  cuda::SparseAttention job;
  job.type = type_of(in.q);
  job.rows = in.q.size(0), job.length = job.key_length = job.rows / in.attention.batch;
  job.heads = in.q.size(1), job.kv_heads = in.k.size(1), job.key_dim = in.q.size(2), job.value_dim = in.v.size(2);
  job.scale = static_cast<float>(in.attention.scale);
  job.q = in.q.const_data_ptr(), job.k = in.k.const_data_ptr(), job.v = in.v.const_data_ptr();
  job.q_stride = in.q.stride(0), job.k_stride = in.k.stride(0), job.v_stride = in.v.stride(0);
  job.selected = selected.const_data_ptr<int32_t>(), job.width = selected.size(1);
  return job;
}

// out, lse, dq, dk, dv; gradients go to slices of wider rows.
Tensors attention_on(const SparseInputs& in, const at::Tensor& selected, const at::Tensor& dout, int64_t chunk) {
  cuda::SparseAttention job = attention_job(in, selected);
  Tensors all{at::full({job.rows, job.heads * job.value_dim}, NAN, in.q.options()),
              at::full({in.attention.batch, job.heads, job.length}, NAN)};
  job.out = all[0].data_ptr(), job.lse = all[1].data_ptr<float>();
  cuda::sparse_attention_forward(job, nullptr);
  for (const auto& x : {in.q, in.k, in.v})
    all.push_back(at::full({x.size(0), x.size(1) + 2, x.size(2)}, NAN, x.options()).narrow(1, 1, x.size(1)));
  cuda::SparseAttentionBackward back;
  back.forward = job, back.chunk = chunk;
  back.dout = dout.const_data_ptr();
  back.dq = all[2].data_ptr(), back.dk = all[3].data_ptr(), back.dv = all[4].data_ptr();
  back.dq_stride = all[2].stride(0), back.dk_stride = all[3].stride(0), back.dv_stride = all[4].stride(0);
  const at::Tensor memory = workspace(cuda::sparse_backward_workspace(job, chunk));
  back.workspace = memory.data_ptr<float>();
  cuda::sparse_attention_backward(back, nullptr);
  return all;
}

void expect_attention(const SparseInputs& in, const at::Tensor& selected, const std::string& name) {
  const auto type = in.q.scalar_type();
  const auto dout = random_floats({in.q.size(0), in.q.size(1) * in.v.size(2)}, 9).to(type);
  emulator::order() = Order::forward;
  const auto got = attention_on(in, selected, dout, 7);
  const auto twin = [&](const Tensors& x) {
    return Tensors{ref::sparse_attention(x[0], x[1], x[2], selected, in.attention)};
  };
  const auto wide = in_double(in);
  EXPECT_EQ(got[0].scalar_type(), type);
  expect_close(got[0], twin({wide.q, wide.k, wide.v})[0], tolerance(type), name + " out");
  const auto lse = ref::sparse_attention_lse(wide.q, wide.k, selected, in.attention), none = lse.isinf();
  EXPECT_TRUE(got[1].isinf().equal(none)) << name;
  expect_close(got[1].masked_fill(none, 0), lse.masked_fill(none, 0), 3e-6, name + " lse");
  const auto gradients = oracle_gradients(twin, {in.q, in.k, in.v}, {dout});
  for (int i = 0; i < 3; ++i)
    expect_close(got[2 + i], gradients[i], 2 * tolerance(type), fmt::format("{} gradient {}", name, i));

  // Neither the order of threads, nor the size of the workspace, nor empty columns of the lists change a bit.
  emulator::order() = Order::backward;
  const auto wider = at::cat({selected, at::full({selected.size(0), 5}, -1, selected.options())}, 1);
  const auto again = attention_on(in, wider, dout, in.q.size(0) / 2 + 1);
  emulator::order() = Order::forward;
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], again[i])) << name << " output " << i;
}

// Every shape of a warp's set of heads (one head a key, two to five), more keys than there are, documents of one token.
const std::vector<SparseCase> kSmall = {
    {},
    {.batch = 3, .length = 5, .index_heads = 2, .index_dim = 6, .heads = 2, .key_dim = 6, .value_dim = 3, .topk = 2},
    {.batch = 2,
     .length = 21,
     .index_heads = 3,
     .index_dim = 20,
     .heads = 3,
     .kv_heads = 3,
     .key_dim = 20,
     .value_dim = 36,
     .topk = 64},
    {.length = 45,
     .index_heads = 4,
     .index_dim = 32,
     .heads = 8,
     .kv_heads = 2,
     .key_dim = 32,
     .value_dim = 32,
     .topk = 17,
     .sinks = 3,
     .window = 5},
    {.batch = 2,
     .length = 29,
     .index_heads = 5,
     .index_dim = 70,
     .heads = 5,
     .key_dim = 40,
     .value_dim = 130,
     .topk = 12,
     .sinks = 2,
     .window = 3,
     .segments = true},
    {.length = 36,
     .index_heads = 1,
     .index_dim = 8,
     .heads = 2,
     .kv_heads = 2,
     .key_dim = 80,
     .value_dim = 16,
     .topk = 1},
    {.batch = 2,
     .length = 33,
     .index_heads = 7,
     .index_dim = 5,
     .heads = 2,
     .key_dim = 9,
     .value_dim = 7,
     .topk = 8,
     .window = 8,
     .segments = true},
};

TEST(CudaEmulatedSparse, AttentionEqualsItsTwin) {
  for (const auto& c : kSmall) {
    const auto in = sparse_inputs(c, true);
    expect_attention(in, selection_of(in), c.name());
  }
}

TEST(CudaEmulatedSparse, AttentionInBfloat16EqualsItsTwin) {
  for (const auto& c : kSmall) {
    const auto in = in_type(sparse_inputs(c, true), at::kBFloat16);
    expect_attention(in, selection_of(in), c.name() + " bfloat16");
  }
}

// One key/value head of 512 + 64 features, the values a part of the keys.
TEST(CudaEmulatedSparse, AttentionInAbsorbedForm) {
  const SparseCase c{.batch = 2, .length = 21, .heads = 5, .kv_heads = 1, .key_dim = 576, .value_dim = 512, .topk = 9};
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto in = in_type(sparse_inputs(c, true), type);
    in.v = in.k.narrow(2, 0, 512);
    expect_attention(in, selection_of(in), c.name());
  }
}

TEST(CudaEmulatedSparse, AttentionStandsEmptyListsAndLargeScores) {
  const SparseCase c{.batch = 1,
                     .length = 40,
                     .index_heads = 2,
                     .index_dim = 4,
                     .heads = 2,
                     .key_dim = 16,
                     .value_dim = 16,
                     .topk = 8};
  auto in = sparse_inputs(c, true);
  const auto selected = selection_of(in);
  selected.narrow(0, 5, 2).fill_(-1);
  expect_attention(in, selected, "empty lists");
  in.q = in.q * 300;  // softmax is one of a few keys then; exp of the scores would overflow
  const auto job_out = attention_on(in, selected, random_floats({40, 32}, 9), 11);
  for (const auto& x : {job_out[0], job_out[2], job_out[3], job_out[4]}) EXPECT_TRUE(x.isfinite().all().item<bool>());
  expect_close(
      job_out[0],
      ref::sparse_attention(in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble), selected, in.attention),
      1e-4, "large scores");
}

at::Tensor starts(const SparseInputs& in) {
  const int64_t rows = in.index_q.size(0), length = rows / in.options.batch;
  const auto start = at::full({rows}, -7, at::kInt);
  const int32_t* segments = in.options.segments.defined() ? in.options.segments.const_data_ptr<int32_t>() : nullptr;
  cuda::segment_starts(segments, rows, length, start.data_ptr<int32_t>(), nullptr);
  return start;
}

// Queries are the rows of `q`, of the last positions; keys and everything else as given.
at::Tensor topk_on(const SparseInputs& in, const at::Tensor& q, const at::Tensor& w, int64_t key_length,
                   int64_t chunk) {
  cuda::IndexTopk job;
  job.type = type_of(q);
  job.sequences = in.options.batch, job.length = q.size(0) / job.sequences, job.key_length = key_length;
  job.first_position = key_length - job.length;
  job.heads = q.size(1), job.dim = q.size(2);
  job.q = q.const_data_ptr(), job.k = in.index_k.const_data_ptr(), job.w = w.const_data_ptr();
  job.q_stride = q.stride(0), job.k_stride = in.index_k.stride(0), job.w_stride = w.stride(0);
  const at::Tensor start = job.first_position == 0 ? starts(in) : at::zeros({q.size(0)}, at::kInt);
  job.start = start.const_data_ptr<int32_t>();
  job.topk = in.options.topk, job.sinks = in.options.sinks, job.window = in.options.window;
  const auto selected = at::full({q.size(0), std::min(job.topk, key_length)}, -7, at::kInt);
  job.selected = selected.data_ptr<int32_t>();
  const auto memory = workspace(chunk * key_length);
  job.workspace = memory.data_ptr<float>(), job.chunk = chunk;
  cuda::index_topk(job, nullptr);
  return selected;
}
at::Tensor topk_on(const SparseInputs& in, int64_t chunk) {
  return topk_on(in, in.index_q, in.index_w, in.index_q.size(0) / in.options.batch, chunk);
}

TEST(CudaEmulatedSparse, ChoosesWhatTheTwinChooses) {
  for (const auto& c : kSmall) {
    const auto in = sparse_inputs(c, true);  // exact scores, many of them equal
    const auto expected = selection_of(in);
    emulator::order() = Order::backward;
    EXPECT_TRUE(topk_on(in, c.length + 3).equal(expected)) << c.name();
    emulator::order() = Order::forward;
    EXPECT_TRUE(topk_on(in, 1 + c.length / 3).equal(expected)) << c.name() << " in strips";
    EXPECT_TRUE(topk_on(in_type(in, at::kBFloat16), c.length * c.batch).equal(expected)) << c.name() << " bfloat16";
  }
}

// Scores that are rounded: they are rounded alike. Rows of several rounds of a block, several tiles of keys.
TEST(CudaEmulatedSparse, ChoosesWhatTheCpuChooses) {
  auto cases = kSmall;
  cases.push_back(
      {.batch = 2, .length = 290, .index_heads = 2, .index_dim = 40, .topk = 100, .sinks = 1, .segments = true});
  cases.push_back({.length = 530, .index_heads = 1, .index_dim = 3, .topk = 270, .window = 2});
  for (const auto& c : cases) {
    auto in = sparse_inputs(c, false);
    EXPECT_TRUE(topk_on(in, 600).equal(index_topk(in.index_q, in.index_k, in.index_w, in.options))) << c.name();
    if (c.length < 25 || c.length > 200) continue;
    in.index_w.narrow(0, 20, 1).fill_(NAN);
    in.index_k.narrow(0, 3, 1).fill_(NAN);
    in.index_k.narrow(0, 7, 1).fill_(INFINITY);
    EXPECT_TRUE(topk_on(in, 600).equal(index_topk(in.index_q, in.index_k, in.index_w, in.options))) << c.name();
  }
}

TEST(CudaEmulatedSparse, DecodesWhatItTrained) {
  const SparseCase c{.length = 90,
                     .index_heads = 3,
                     .index_dim = 10,
                     .heads = 4,
                     .kv_heads = 2,
                     .key_dim = 24,
                     .value_dim = 40,
                     .topk = 12,
                     .sinks = 1,
                     .window = 3};
  const auto in = sparse_inputs(c, false);
  const auto all = topk_on(in, 100);
  auto job = attention_job(in, all);
  const auto out = at::empty({c.length, c.heads * c.value_dim});
  job.out = out.data_ptr();
  cuda::sparse_attention_forward(job, nullptr);
  for (int64_t n : {1, 5}) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, 80 - n, n).contiguous(); };
    const auto selected = topk_on(in, rows(in.index_q), rows(in.index_w), 80, 2);
    EXPECT_TRUE(selected.equal(rows(all)));
    SparseInputs last = in;
    last.q = rows(in.q);
    auto decoding = attention_job(last, selected);
    decoding.key_length = 80;
    const auto decoded = at::empty({n, c.heads * c.value_dim});
    decoding.out = decoded.data_ptr();
    cuda::sparse_attention_forward(decoding, nullptr);
    EXPECT_TRUE(same_bits(decoded, rows(out))) << n;
  }
}

// What the warm-up asks of attention over all keys: lists of all candidates, a part of the rows at a time.
TEST(CudaEmulatedSparse, LseOverAllCandidates) {
  for (const auto& c : kSmall) {
    const auto in = sparse_inputs(c, true);
    const int64_t rows = in.q.size(0), chunk = rows / 2 + 1;
    const auto start = starts(in), lists = at::full({chunk, c.length}, -7, at::kInt);
    const auto lse = at::full({c.batch, c.heads, c.length}, NAN);
    auto job = attention_job(in, lists);
    job.v = nullptr, job.value_dim = 0, job.lse = lse.data_ptr<float>();
    for (job.begin = 0; job.begin < rows; job.begin += job.rows) {
      job.rows = std::min(chunk, rows - job.begin);
      cuda::list_candidates(start.const_data_ptr<int32_t>(), job.begin, job.begin + job.rows, c.length, c.length,
                            lists.data_ptr<int32_t>(), nullptr);
      cuda::sparse_attention_forward(job, nullptr);
    }
    auto dense = in.attention;
    dense.segments = in.options.segments;
    expect_close(lse, ref::attention_lse(in.q.to(at::kDouble), in.k.to(at::kDouble), dense), 3e-6, c.name());
  }
}

struct Learnt {
  at::Tensor kl, recall, best;  // [N]
  at::Tensor dq, dk, dw;
};

Learnt loss_on(const SparseInputs& in, const at::Tensor& selected, const std::vector<MassSource>& sources,
               double coefficient, int64_t chunk) {
  cuda::IndexLossRun job;
  job.type = type_of(in.index_q);
  job.rows = in.index_q.size(0), job.length = job.rows / in.options.batch;
  job.heads = in.index_q.size(1), job.dim = in.index_q.size(2);
  job.q = in.index_q.const_data_ptr(), job.k = in.index_k.const_data_ptr(), job.w = in.index_w.const_data_ptr();
  job.q_stride = in.index_q.stride(0), job.k_stride = in.index_k.stride(0), job.w_stride = in.index_w.stride(0);
  const at::Tensor start = starts(in);
  job.start = start.const_data_ptr<int32_t>();
  job.width = selected.defined() ? selected.size(1) : job.length;
  job.selected = selected.defined() ? selected.const_data_ptr<int32_t>() : nullptr;
  std::vector<cuda::AttentionMass> masses;
  for (const auto& s : sources)
    masses.push_back({type_of(s.q), s.q.size(1), s.k.size(1), s.q.size(2), static_cast<float>(s.scale),
                      s.q.const_data_ptr(), s.k.const_data_ptr(), s.q.stride(0), s.k.stride(0),
                      s.lse.const_data_ptr<float>()});
  job.sources = masses.data(), job.source_count = masses.size();
  job.coefficient = static_cast<float>(coefficient);
  Learnt out;
  for (auto* x : {&out.kl, &out.recall, &out.best}) *x = at::full({job.rows}, NAN);
  out.dq = at::full(in.index_q.sizes(), NAN, in.index_q.options());
  out.dk = at::full(in.index_k.sizes(), NAN, in.index_k.options());
  out.dw = at::full(in.index_w.sizes(), NAN, in.index_w.options());
  job.dq = out.dq.data_ptr(), job.dk = out.dk.data_ptr(), job.dw = out.dw.data_ptr();
  job.kl = out.kl.data_ptr<float>(), job.recall = out.recall.data_ptr<float>();
  job.best_recall = out.best.data_ptr<float>();
  job.topk = in.options.topk, job.sinks = in.options.sinks, job.window = in.options.window;
  const auto memory = workspace(cuda::index_loss_workspace(job, chunk));
  job.workspace = memory.data_ptr<float>(), job.chunk = chunk;
  cuda::index_loss(job, nullptr);
  return out;
}

void expect_loss(const SparseInputs& in, const at::Tensor& selected, int64_t source_count, const std::string& name) {
  const auto type = in.index_q.scalar_type();
  std::vector<MassSource> sources, wide_sources;
  const auto attended = selected.defined() ? selected : [&] {
    auto all = in.options;
    all.topk = in.q.size(0) / all.batch, all.sinks = all.window = 0;
    return ref::index_topk(in.index_q, in.index_k, in.index_w, all);
  }();
  for (int64_t i = 0; i < source_count; ++i) {
    const auto q = i == 0 ? in.q : in.q.flip(1).contiguous();
    const auto lse = ref::sparse_attention_lse(q.to(at::kDouble), in.k.to(at::kDouble), attended, in.attention);
    sources.push_back({q, in.k, lse.to(at::kFloat), in.attention.scale});
    wide_sources.push_back({q.to(at::kDouble), in.k.to(at::kDouble), lse, in.attention.scale});
  }
  const double coefficient = 0.37;
  const auto wide = in_double(in);
  const auto expected =
      ref::index_loss(wide.index_q, wide.index_k, wide.index_w, selected, wide_sources, in.options, coefficient);
  const auto got = loss_on(in, selected, sources, coefficient, 13);
  EXPECT_NEAR(got.kl.to(at::kDouble).sum().item<double>(), expected.kl, 1e-5 * (1 + expected.kl)) << name;
  const double bound = type == at::kFloat ? 5e-6 : 1e-2;
  expect_close(got.dq, expected.dq, bound, name + " dq");
  expect_close(got.dk, expected.dk, bound, name + " dk");
  expect_close(got.dw, expected.dw, bound, name + " dw");
  if (!selected.defined()) {
    EXPECT_NEAR(got.recall.to(at::kDouble).sum().item<double>(), expected.recall, 1e-5 * (1 + expected.recall)) << name;
    EXPECT_NEAR(got.best.to(at::kDouble).sum().item<double>(), expected.best_recall, 1e-5 * (1 + expected.best_recall))
        << name;
  }

  emulator::order() = Order::backward;
  const auto again = loss_on(in, selected, sources, coefficient, in.q.size(0) + 2);
  emulator::order() = Order::forward;
  for (auto member : {&Learnt::kl, &Learnt::dq, &Learnt::dk, &Learnt::dw})
    EXPECT_TRUE(same_bits(got.*member, again.*member)) << name;
  // Without gradients: the same loss.
  if (in.q.size(0) < 50) {
    EXPECT_TRUE(same_bits(loss_on(in, selected, sources, 0, 29).kl, got.kl)) << name;
  }
}

TEST(CudaEmulatedSparse, LossOverListedKeys) {
  for (const auto& c : kSmall) {
    const auto in = sparse_inputs(c, true);
    expect_loss(in, selection_of(in), 1 + c.batch % 2, c.name());
    if (c.batch > 1) continue;
    const auto half = in_type(in, at::kBFloat16);
    expect_loss(half, selection_of(half), 1, c.name() + " bfloat16");
  }
}

TEST(CudaEmulatedSparse, LossOverAllCandidates) {
  for (const auto& c : kSmall) {
    const auto in = sparse_inputs(c, true);
    expect_loss(in, {}, 1 + c.batch % 2, c.name());
  }
}

// Lists longer than what a block takes at once.
TEST(CudaEmulatedSparse, LossOverLongLists) {
  const SparseCase c{.length = 300, .index_dim = 3, .heads = 2, .key_dim = 4, .value_dim = 2, .topk = 290};
  const auto in = sparse_inputs(c, true);
  auto lists = selection_of(in);
  lists.narrow(0, 0, 296).narrow(1, 3, 287).fill_(-1);  // a few long ones are enough
  expect_loss(in, lists, 1, c.name());
}

}  // namespace
}  // namespace cairn::kernels
