// What stands around the gated delta rule: the short convolution, its gates and the gated norm, against their twins.
#include "models/kernels/causal_conv.h"
#include "models/kernels/delta_gates.h"
#include "models/kernels/gated_norm.h"
#include "models/kernels/ref/causal_conv.h"
#include "models/kernels/ref/gated_norm.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using testing::Tensors;

struct ConvCase {
  int64_t batch, length, taps;
  std::vector<ConvRun> runs;
  int64_t columns;  // of x
  bool segments = false;
};

const std::vector<ConvCase>& conv_cases() {
  static const std::vector<ConvCase> all = {
      {1, 1, 4, {{0, 0, 16}}, 16},
      {2, 3, 4, {{0, 0, 5}}, 5},
      {3, 40, 4, {{0, 0, 7}, {20, 7, 33}}, 60},
      {2, 130, 4, {{64, 16, 48}, {0, 0, 16}, {130, 64, 70}}, 210, true},
      {1, 70, 1, {{3, 0, 20}}, 30},
      {2, 33, 2, {{0, 0, 20}}, 20, true},
      {2, 50, 8, {{0, 0, 18}}, 18, true},
  };
  return all;
}

struct ConvInputs {
  at::Tensor x, weight, dy;
  ConvOptions options;
};

ConvInputs conv_inputs(const ConvCase& c) {
  int64_t width = 0;
  for (const auto& run : c.runs) width += run.count;
  const int64_t N = c.batch * c.length;
  ConvInputs in{testing::random_floats({N, c.columns}, 1),
                testing::random_floats({width, c.taps}, 2),
                testing::random_floats({N, width}, 3),
                {.batch = c.batch, .runs = c.runs}};
  if (c.segments) {
    in.options.segments = at::empty({N}, at::kInt);
    for (int64_t n = 0, id = 0, left = 1; n < N; ++n) {
      if (n % c.length == 0) left = 1, id = 0;
      in.options.segments[n] = id;
      if (--left == 0) ++id, left = id % 6 + 1;
    }
  }
  return in;
}

// y, dx, dweight; dx is zero where no run looks.
Tensors run_conv(const ConvInputs& in) {
  const at::Tensor y = causal_conv_forward(in.x, in.weight, in.options);
  const at::Tensor dx = at::zeros_like(in.x), dweight = at::full_like(in.weight, 2.0);
  causal_conv_backward(in.dy.clone(), in.x, in.weight, in.options, dx, dweight);
  return {y, dx, dweight - 2.0};
}

TEST(CausalConv, EqualsTheTwinForwardAndBackward) {
  for (const ConvCase& c : conv_cases()) {
    const ConvInputs in = conv_inputs(c);
    const auto twin = [&](const Tensors& x) -> Tensors { return {ref::causal_conv(x[0], x[1], in.options)}; };
    const Tensors fast = run_conv(in), grads = testing::oracle_gradients(twin, {in.x, in.weight}, {in.dy});
    const std::string what = fmt::format("T {} taps {}", c.length, c.taps);
    testing::expect_close(fast[0], twin({in.x.to(at::kDouble), in.weight.to(at::kDouble)})[0], 1e-6, what);
    testing::expect_close(fast[1], grads[0], 2e-6, what + " dx");
    testing::expect_close(fast[2], grads[1], 2e-6, what + " dweight");
    testing::expect_finite_differences(twin, {in.x, in.weight}, {in.dy}, grads, 1e-6, what);
    testing::expect_same_bits_everywhere([&] { return run_conv(in); }, what);
  }
}

TEST(CausalConv, ADocumentAloneAndDecodedGiveTheSameBits) {
  for (const ConvCase& c : conv_cases()) {
    const ConvInputs in = conv_inputs(c);
    const Tensors all = run_conv(in);
    const int64_t N = c.batch * c.length;
    const at::Tensor segments = in.options.segments.defined() ? in.options.segments : at::zeros({N}, at::kInt);
    for (int64_t begin = 0, end; begin < N; begin = end) {
      end = begin + 1;
      while (end % c.length != 0 && segments[end].item<int>() == segments[begin].item<int>()) ++end;
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, end - begin); };
      ConvInputs alone{rows(in.x), in.weight, rows(in.dy).contiguous(), {.runs = c.runs}};
      const Tensors one = run_conv(alone);
      EXPECT_TRUE(testing::same_bits(one[0], rows(all[0]))) << c.length << " from " << begin;
      EXPECT_TRUE(testing::same_bits(one[1], rows(all[1]))) << c.length << " from " << begin;
      // A prompt, then one row, two rows, one row ...
      const at::Tensor history = at::zeros({c.taps - 1, c.columns}), twin_history = at::zeros({c.taps - 1, c.columns});
      Tensors decoded, twin;
      for (int64_t at = begin, count; at < end; at += count) {
        count = std::min(end - at, at == begin ? (end - begin + 1) / 2 : at % 2 + 1);
        decoded.push_back(causal_conv_decode(in.x.narrow(0, at, count), in.weight, history, alone.options));
        twin.push_back(ref::causal_conv(in.x.narrow(0, at, count), in.weight, alone.options, twin_history));
      }
      EXPECT_TRUE(testing::same_bits(at::cat(decoded), rows(all[0]))) << c.length << " from " << begin;
      testing::expect_close(at::cat(twin), rows(all[0]), 1e-6, "twin decoded");
      EXPECT_TRUE(at::equal(history, twin_history));
    }
  }
}

TEST(CausalConv, RefusesWhatDoesNotFit) {
  ConvInputs in = conv_inputs(conv_cases()[2]);
  const auto message = [&] { return testing::message_of([&] { causal_conv_forward(in.x, in.weight, in.options); }); };
  in.weight = at::zeros({40, 9});
  EXPECT_NE(message().find("1 to 8 taps"), std::string::npos);
  in.weight = at::zeros({41, 4});
  EXPECT_NE(message().find("cover 40 columns, expected 41"), std::string::npos);
}

struct NormCase {
  int64_t tokens, key_heads, group, width;
};

TEST(GatedNorm, EqualsTheTwinForwardAndBackward) {
  for (const NormCase& c :
       {NormCase{1, 1, 1, 16}, NormCase{5, 2, 3, 10}, NormCase{70, 2, 1, 33}, NormCase{300, 2, 2, 64}}) {
    const int64_t H = c.key_heads * c.group, block = c.group * c.width + 9;  // what else a key head's columns hold
    const at::Tensor x = testing::random_floats({c.tokens, H, c.width}, 1),
                     fused = testing::random_floats({c.tokens, c.key_heads, block}, 2, 2.0),
                     weight = testing::random_floats({c.width}, 3), dy = testing::random_floats(x.sizes(), 4);
    const auto gate = [&](const at::Tensor& all) {
      return all.narrow(2, 9, c.group * c.width).unflatten(2, {c.group, c.width});
    };
    const auto twin = [&](const Tensors& in) -> Tensors { return {ref::gated_norm(in[0], gate(in[1]), in[2], 1e-3)}; };
    const auto run = [&]() -> Tensors {
      const auto out = gated_norm_forward(x, gate(fused), weight, 1e-3);
      const at::Tensor dfused = at::zeros_like(fused), dweight = at::full_like(weight, 1.0);
      const at::Tensor dx = gated_norm_backward(dy, x, gate(fused), weight, out.rstd, gate(dfused), dweight);
      return {out.y, dx, dfused, dweight - 1.0};
    };
    const Tensors fast = run(), grads = testing::oracle_gradients(twin, {x, fused, weight}, {dy});
    const std::string what = fmt::format("{} tokens", c.tokens);
    testing::expect_close(fast[0], twin({x.to(at::kDouble), fused.to(at::kDouble), weight.to(at::kDouble)})[0], 1e-6,
                          what);
    for (size_t i = 0; i < 3; ++i) testing::expect_close(fast[i + 1], grads[i], 2e-6, what + " gradient");
    testing::expect_finite_differences(twin, {x, fused, weight}, {dy}, grads, 1e-6, what);
    testing::expect_same_bits_everywhere(run, what);
  }
}

TEST(SigmoidGate, EqualsTheTwinForwardAndBackward) {
  for (const NormCase& c : {NormCase{1, 1, 1, 8}, NormCase{60, 6, 1, 20}, NormCase{200, 2, 2, 64}}) {
    const int64_t H = c.key_heads * c.group, block = c.group * c.width + 5;
    const at::Tensor x = testing::random_floats({c.tokens, H, c.width}, 1),
                     fused = testing::random_floats({c.tokens, c.key_heads, block}, 2, 5.0),
                     dy = testing::random_floats(x.sizes(), 4);
    const auto gate = [&](const at::Tensor& all) {
      return all.narrow(2, 5, c.group * c.width).unflatten(2, {c.group, c.width});
    };
    const auto twin = [&](const Tensors& in) -> Tensors { return {ref::sigmoid_gate(in[0], gate(in[1]))}; };
    const auto run = [&]() -> Tensors {
      const at::Tensor dfused = at::zeros_like(fused);
      return {sigmoid_gate_forward(x, gate(fused)), sigmoid_gate_backward(dy, x, gate(fused), gate(dfused)), dfused};
    };
    const Tensors fast = run(), grads = testing::oracle_gradients(twin, {x, fused}, {dy});
    const std::string what = fmt::format("{} tokens", c.tokens);
    testing::expect_close(fast[0], twin({x.to(at::kDouble), fused.to(at::kDouble)})[0], 1e-6, what);
    for (size_t i = 0; i < 2; ++i) testing::expect_close(fast[i + 1], grads[i], 2e-6, what + " gradient");
    testing::expect_same_bits_everywhere(run, what);
  }
}

TEST(DeltaGates, EqualTheTwinForwardAndBackward) {
  for (const auto& [rows, key_heads, heads] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {40, 2, 6}, {3000, 4, 32}}) {
    // From deep forgetting to none: softplus far below and above zero.
    const at::Tensor ba = testing::random_floats({rows, 2 * heads}, 1, 9.0), A_log = testing::random_floats({heads}, 2),
                     dt_bias = testing::random_floats({heads}, 3), dg = testing::random_floats({rows, heads}, 4),
                     dbeta = testing::random_floats({rows, heads}, 5);
    const int64_t K = key_heads;
    const auto twin = [K](const Tensors& in) -> Tensors {
      const auto [g, beta] = ref::delta_gates(in[0], in[1], in[2], K);
      return {g, beta};
    };
    const auto run = [&]() -> Tensors {
      const auto out = delta_gates_forward(ba, A_log, dt_bias, K);
      const at::Tensor dA = at::full_like(A_log, 1.0), ddt = at::full_like(dt_bias, 1.0), dba = at::empty_like(ba);
      delta_gates_backward(dg, dbeta, out, ba, A_log, dt_bias, K, dba, dA, ddt);
      return {out.g, out.beta, dba, dA - 1.0, ddt - 1.0};
    };
    const Tensors fast = run(), grads = testing::oracle_gradients(twin, {ba, A_log, dt_bias}, {dg, dbeta});
    const Tensors exact = twin({ba.to(at::kDouble), A_log.to(at::kDouble), dt_bias.to(at::kDouble)});
    const std::string what = fmt::format("{} rows", rows);
    // Relative to each element: a decay of 1e-8 is one.
    for (size_t i = 0; i < 2; ++i)
      EXPECT_LT(((fast[i].to(at::kDouble) - exact[i]) / exact[i]).abs().max().item<double>(), 3e-6) << what << " " << i;
    for (size_t i = 0; i < 3; ++i) testing::expect_close(fast[i + 2], grads[i], 3e-6, what + " gradient");
    testing::expect_finite_differences(twin, {ba, A_log, dt_bias}, {dg, dbeta}, grads, 1e-6, what);
    testing::expect_same_bits_everywhere(run, what);
  }
}

}  // namespace
}  // namespace cairn::kernels
