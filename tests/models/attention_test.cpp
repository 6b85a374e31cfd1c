// labels: quick
// Attention: the vector kernel against its plain twin in float64, and what its bits may depend on.
#include "models/kernels/attention.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <ATen/Parallel.h>
#include <hwy/targets.h>

#include <cmath>
#include <string>
#include <vector>

#include "models/kernels/ref/attention.h"

namespace cairn::kernels {
namespace {

struct Case {
  int64_t batch, length, heads, kv_heads, dim;
  int64_t window = 0;
  double softcap = 0, dropout = 0;
  bool segments = false, fused = true, sinks = false;

  std::string name() const {
    return "B" + std::to_string(batch) + " T" + std::to_string(length) + " H" + std::to_string(heads) + " K" +
           std::to_string(kv_heads) + " D" + std::to_string(dim) + " window " + std::to_string(window) + " softcap " +
           std::to_string(softcap) + " dropout " + std::to_string(dropout) + (segments ? " segments" : "") +
           (sinks ? " sinks" : "") + (fused ? " fused" : " apart");
  }
};

struct Inputs {
  at::Tensor q, k, v, dout;
  AttentionOptions options;
};

// Slices of one fused product, or tensors of their own.
std::vector<at::Tensor> split(const Case& c) {
  const int64_t rows = c.batch * c.length;
  if (c.fused) {
    const auto x = at::randn({rows, c.heads + 2 * c.kv_heads, c.dim});
    return {x.narrow(1, 0, c.heads), x.narrow(1, c.heads, c.kv_heads), x.narrow(1, c.heads + c.kv_heads, c.kv_heads)};
  }
  return {at::randn({rows, c.heads, c.dim}), at::randn({rows, c.kv_heads, c.dim}),
          at::randn({rows, c.kv_heads, c.dim})};
}

Inputs inputs_of(const Case& c) {
  at::manual_seed(c.length * 131 + c.heads * 17 + c.dim);
  Inputs in;
  const auto parts = split(c);
  in.q = parts[0], in.k = parts[1], in.v = parts[2];
  in.dout = at::randn({c.batch * c.length, c.heads * c.dim});
  in.options.batch = c.batch;
  in.options.scale = 1.3 / std::sqrt(static_cast<double>(c.dim));
  in.options.window = c.window, in.options.softcap = c.softcap, in.options.dropout = c.dropout;
  in.options.dropout_key = {12345678901234ull, 0xdeadbeefcafef00dull, 1000};
  if (c.sinks) in.options.sinks = at::randn({c.heads}) * 3;
  if (c.segments) {
    // Documents of 1, 2, 3, ... rows, cut by the sequence: many of one token at the cut.
    auto segment = at::empty({c.batch * c.length}, at::kInt);
    for (int64_t n = 0, id = 0, left = 1, size = 1; n < segment.numel(); ++n) {
      if (n % c.length == 0) id = 0, left = size = 1 + n / c.length;
      segment[n] = id;
      if (--left == 0) ++id, left = size = size * 2 % 97 + 1;
    }
    in.options.segments = segment;
  }
  return in;
}

struct Result {
  at::Tensor out, lse, dq, dk, dv;
};

Result run(const Inputs& in) {
  const auto forward = attention_forward(in.q, in.k, in.v, in.options);
  // Gradients go to slices of one fused buffer, as the layer wants them.
  const int64_t heads = in.q.size(1), kv_heads = in.k.size(1);
  const auto d = at::full({in.q.size(0), heads + 2 * kv_heads, in.q.size(2)}, NAN);
  Result r{forward.out, forward.lse, d.narrow(1, 0, heads), d.narrow(1, heads, kv_heads),
           d.narrow(1, heads + kv_heads, kv_heads)};
  attention_backward(in.dout, in.q, in.k, in.v, r.out, r.lse, in.options, r.dq, r.dk, r.dv);
  return r;
}

// The twin in float64 through autograd.
Result oracle(const Inputs& in) {
  std::vector<at::Tensor> x;
  for (const auto& part : {in.q, in.k, in.v}) x.push_back(part.to(at::kDouble).clone().requires_grad_());
  const auto out = ref::attention(x[0], x[1], x[2], in.options);
  const auto grads = torch::autograd::grad({out}, x, {in.dout.to(at::kDouble)});
  return {out.detach(), ref::attention_lse(x[0], x[1], in.options).detach(), grads[0], grads[1], grads[2]};
}

double error(const at::Tensor& x, const at::Tensor& y) {
  const double worst = (x.to(at::kDouble) - y.to(at::kDouble)).abs().max().item<double>();
  return std::isnan(worst) ? INFINITY : worst / (1 + y.abs().max().item<double>());
}

bool same_bits(const at::Tensor& x, const at::Tensor& y) {
  return at::equal(x.contiguous().view(at::kInt), y.contiguous().view(at::kInt));
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {.batch = 1, .length = 1, .heads = 1, .kv_heads = 1, .dim = 8},
      {.batch = 3, .length = 5, .heads = 2, .kv_heads = 1, .dim = 6},
      {.batch = 2, .length = 33, .heads = 3, .kv_heads = 3, .dim = 20, .fused = false},
      {.batch = 2, .length = 64, .heads = 4, .kv_heads = 2, .dim = 32},
      {.batch = 2, .length = 65, .heads = 4, .kv_heads = 4, .dim = 32},
      {.batch = 2, .length = 200, .heads = 9, .kv_heads = 3, .dim = 64},
      {.batch = 1, .length = 259, .heads = 2, .kv_heads = 2, .dim = 80},
      {.batch = 1, .length = 130, .heads = 4, .kv_heads = 2, .dim = 128, .fused = false},
      {.batch = 1, .length = 97, .heads = 2, .kv_heads = 1, .dim = 256},
      {.batch = 1, .length = 100, .heads = 3, .kv_heads = 1, .dim = 1},
      {.batch = 1, .length = 700, .heads = 4, .kv_heads = 1, .dim = 16},  // cut into pieces
      {.batch = 2, .length = 150, .heads = 4, .kv_heads = 2, .dim = 32, .window = 1},
      {.batch = 2, .length = 300, .heads = 4, .kv_heads = 2, .dim = 32, .window = 70},
      {.batch = 1, .length = 300, .heads = 2, .kv_heads = 2, .dim = 20, .window = 64},
      {.batch = 1, .length = 90, .heads = 2, .kv_heads = 2, .dim = 32, .window = 500},
      {.batch = 2, .length = 190, .heads = 4, .kv_heads = 2, .dim = 32, .softcap = 5.0},
      {.batch = 2, .length = 190, .heads = 6, .kv_heads = 2, .dim = 32, .segments = true},
      {.batch = 2, .length = 140, .heads = 4, .kv_heads = 1, .dim = 24, .dropout = 0.2},
      {.batch = 2,
       .length = 270,
       .heads = 4,
       .kv_heads = 2,
       .dim = 40,
       .window = 100,
       .softcap = 3.0,
       .dropout = 0.1,
       .segments = true},
      {.batch = 2, .length = 3, .heads = 2, .kv_heads = 1, .dim = 8, .sinks = true},
      {.batch = 2, .length = 200, .heads = 6, .kv_heads = 2, .dim = 32, .window = 66, .sinks = true},
      {.batch = 2, .length = 150, .heads = 4, .kv_heads = 4, .dim = 20, .dropout = 0.1, .segments = true, .sinks = true},
  };
  return all;
}

TEST(Attention, EqualsTheTwinForwardAndBackward) {
  for (const auto& c : cases()) {
    const auto in = inputs_of(c);
    const auto fast = run(in), exact = oracle(in);
    EXPECT_LT(error(fast.out, exact.out), 1e-6) << c.name();
    EXPECT_LT(error(fast.lse, exact.lse), 1e-6) << c.name();
    EXPECT_LT(error(fast.dq, exact.dq), 3e-6) << c.name();
    EXPECT_LT(error(fast.dk, exact.dk), 3e-6) << c.name();
    EXPECT_LT(error(fast.dv, exact.dv), 3e-6) << c.name();
  }
}

TEST(Attention, GradientOfTheSinksIsTheTwins) {
  for (const auto& c : cases()) {
    if (!c.sinks) continue;
    auto in = inputs_of(c);
    const auto forward = attention_forward(in.q, in.k, in.v, in.options);
    const auto got = at::ones({c.heads});
    attention_backward_sinks_(got, in.dout, forward.out, forward.lse, in.options);
    in.options.sinks = in.options.sinks.to(at::kDouble).requires_grad_();
    const auto out = ref::attention(in.q.to(at::kDouble), in.k.to(at::kDouble), in.v.to(at::kDouble), in.options);
    const auto exact = torch::autograd::grad({out}, {in.options.sinks}, {in.dout.to(at::kDouble)})[0];
    EXPECT_LT(error(got - 1, exact), 1e-5) << c.name();
  }
}

// The twin is itself checked: its gradients are those of differences of its values in float64.
TEST(Attention, TwinsGradientsAreThoseOfFiniteDifferences) {
  for (const Case& c : {Case{.batch = 2,
                       .length = 7,
                       .heads = 4,
                       .kv_heads = 2,
                       .dim = 6,
                       .window = 3,
                       .softcap = 2.0,
                       .dropout = 0.3,
                       .segments = true},
                        Case{.batch = 1, .length = 9, .heads = 2, .kv_heads = 1, .dim = 4}}) {
    const auto in = inputs_of(c);
    const auto exact = oracle(in);
    std::vector<at::Tensor> x{in.q.to(at::kDouble).clone(), in.k.to(at::kDouble).clone(), in.v.to(at::kDouble).clone()};
    const std::vector<at::Tensor> grads{exact.dq, exact.dk, exact.dv};
    const auto dout = in.dout.to(at::kDouble);
    const auto value = [&] { return (ref::attention(x[0], x[1], x[2], in.options) * dout).sum().item<double>(); };
    for (int which = 0; which < 3; ++which) {
      double* data = x[which].data_ptr<double>();
      const auto grad = grads[which].contiguous();
      for (int64_t i = 0; i < x[which].numel(); i += 5) {
        const double kept = data[i], h = 1e-5;
        data[i] = kept + h;
        const double up = value();
        data[i] = kept - h;
        const double down = value();
        data[i] = kept;
        EXPECT_NEAR((up - down) / (2 * h), grad.data_ptr<double>()[i], 1e-7)
            << c.name() << " input " << which << " element " << i;
      }
    }
  }
}

void expect_same(const Result& x, const Result& y, const std::string& what) {
  EXPECT_TRUE(same_bits(x.out, y.out)) << what;
  EXPECT_TRUE(same_bits(x.lse, y.lse)) << what;
  EXPECT_TRUE(same_bits(x.dq, y.dq)) << what;
  EXPECT_TRUE(same_bits(x.dk, y.dk)) << what;
  EXPECT_TRUE(same_bits(x.dv, y.dv)) << what;
}

TEST(Attention, BitsDoNotDependOnThreads) {
  const int before = at::get_num_threads();
  for (const auto& c : cases()) {
    const auto in = inputs_of(c);
    at::set_num_threads(1);
    const auto one = run(in);
    for (int threads : {2, 4}) {
      at::set_num_threads(threads);
      expect_same(run(in), one, c.name() + " threads " + std::to_string(threads));
    }
  }
  at::set_num_threads(before);
}

TEST(Attention, BitsDoNotDependOnTheWidthOfVectors) {
  if ((hwy::SupportedTargets() & HWY_AVX3) == 0 || (hwy::SupportedTargets() & HWY_AVX2) == 0)
    GTEST_SKIP() << "this machine has no AVX-512";
  for (const auto& c : cases()) {
    const auto in = inputs_of(c);
    const auto wide = run(in);
    hwy::SetSupportedTargetsForTest(HWY_AVX2);
    const auto narrow = run(in);
    hwy::SetSupportedTargetsForTest(0);
    expect_same(narrow, wide, c.name());
  }
}

// A sequence alone, at its own first row, gives what it gives among others: micro-batches do not matter, dropout
// included.
TEST(Attention, BitsDoNotDependOnTheOtherSequences) {
  for (const auto& c : cases()) {
    if (c.batch < 2) continue;
    const auto in = inputs_of(c);
    const auto all = run(in);
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, b * c.length, c.length); };
      Inputs alone{rows(in.q), rows(in.k), rows(in.v), rows(in.dout), in.options};
      alone.options.batch = 1;
      alone.options.dropout_key.first_row += b * c.length;
      if (c.segments) alone.options.segments = rows(in.options.segments);
      expect_same(run(alone), {rows(all.out), all.lse.narrow(0, b, 1), rows(all.dq), rows(all.dk), rows(all.dv)},
                  c.name());
    }
  }
}

// Scores in the hundreds, where one key takes all: nothing overflows, nothing is lost.
TEST(Attention, StandsLargeScores) {
  auto in = inputs_of({.batch = 2, .length = 150, .heads = 4, .kv_heads = 2, .dim = 32});
  in.options.scale = 40;
  const auto fast = run(in), exact = oracle(in);
  // Scores of 1000 have 6e-5 of rounding in float32, which moves probabilities by as much.
  EXPECT_LT(error(fast.out, exact.out), 3e-4);
  EXPECT_LT(error(fast.lse, exact.lse), 1e-6);
  EXPECT_LT(error(fast.dq, exact.dq), 3e-4);
  EXPECT_LT(error(fast.dk, exact.dk), 3e-4);
  EXPECT_LT(error(fast.dv, exact.dv), 3e-4);
}

TEST(Attention, DropsTheExpectedShare) {
  const auto mask = ref::attention_dropout_mask(2, 3, 200, 0.25, {1, 2, 3});
  EXPECT_NEAR(mask.eq(0).to(at::kDouble).mean().item<double>(), 0.25, 0.005);
  EXPECT_NEAR(mask.mean().item<double>(), 1.0, 0.01);
}

// Prefill, chunk by chunk and row by row: equal to the twin, and to the bit what the training kernel gives.
TEST(Attention, DecodesWhatItTrained) {
  const int before = at::get_num_threads();
  for (const auto& c : cases()) {
    if (c.batch != 1 && !c.fused) continue;
    if (c.segments || c.dropout > 0) continue;
    auto in = inputs_of(c);
    const auto rows = [&](const at::Tensor& x, int64_t begin, int64_t count) { return x.narrow(0, begin, count); };
    in.options.batch = 1;
    const auto q = rows(in.q, 0, c.length), k = rows(in.k, 0, c.length), v = rows(in.v, 0, c.length);
    const auto out = attention_forward(q, k, v, in.options).out;
    for (int64_t end : {int64_t{1}, c.length / 2, c.length - 1, c.length})
      for (int64_t count : {1, 2, 5, 70}) {
        if (count > end) continue;
        for (int threads : {1, 3}) {
          at::set_num_threads(threads);
          const auto decoded = attention_decode(rows(q, end - count, count), k, v, end, in.options);
          const std::string what = c.name() + " rows " + std::to_string(count) + " of " + std::to_string(end);
          EXPECT_TRUE(same_bits(decoded, rows(out, end - count, count))) << what;
          const auto twin = ref::attention_decode(rows(q, end - count, count).to(at::kDouble), k.to(at::kDouble),
                                                  v.to(at::kDouble), end, in.options);
          EXPECT_LT(error(decoded, twin), 1e-6) << what;
        }
      }
  }
  at::set_num_threads(before);
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  const auto x = at::randn({8, 3, 16}), y = at::randn({8, 2, 16});
  EXPECT_THROW(attention_forward(x, y, y, {}), std::invalid_argument);
  EXPECT_THROW(attention_forward(x.to(at::kDouble), x, x, {}), std::invalid_argument);
  EXPECT_THROW(attention_forward(x.transpose(1, 2), x, x, {}), std::invalid_argument);
  EXPECT_THROW(attention_decode(x, x, x, 9, {}), std::invalid_argument);
}

}  // namespace
}  // namespace cairn::kernels
