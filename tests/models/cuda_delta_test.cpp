// labels: quick
#include "models/kernels/ref/causal_conv.h"
#include "models/kernels/ref/delta_rule.h"
#include "models/kernels/ref/gated_norm.h"
#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

class CudaDelta : public CudaTest {};

// Documents of 1, 1, 3, 7, ... rows, some longer than a chunk.
at::Tensor documents(int64_t batch, int64_t length) {
  const at::Tensor segments = at::empty({batch * length}, at::kInt);
  for (int64_t n = 0, id = 0, left = 1, size = 1; n < batch * length; ++n) {
    if (n % length == 0) left = size = 1 + n / length, id = 0;
    segments[n] = id;
    if (--left == 0) ++id, left = size = size == 1 && id == 1 ? 1 : (size * 2 + 1) % 131;
  }
  return segments;
}

struct Case {
  int64_t batch, length, key_heads, value_heads, key_dim, value_dim;
  bool segments = false;
  double decay = 0.3;  // of the size of g
};
const Case kCases[] = {
    {1, 1, 1, 1, 16, 16},
    {3, 5, 1, 2, 6, 10},
    {2, 200, 2, 4, 64, 64, true},
    {2, 300, 2, 4, 128, 128},
    {1, 193, 1, 1, 256, 48},
    {2, 150, 3, 3, 12, 17, true, 30.0},
    {1, 500, 2, 2, 40, 24, false, 0.0},
};

TEST_F(CudaDelta, TheRuleEqualsItsDefinition) {
  const char* names[] = {"out", "dq", "dk", "dv", "dg", "dbeta"};
  for (const Case& c : kCases)
    for (auto type : {at::kFloat, at::kBFloat16}) {
      const int64_t N = c.batch * c.length, key = c.key_heads * c.key_dim, value = c.value_heads * c.value_dim;
      const std::string name = fmt::format("B{} T{} Hk{} Hv{} Dk{} Dv{} {}", c.batch, c.length, c.key_heads,
                                           c.value_heads, c.key_dim, c.value_dim, c10::toString(type));
      const auto parts = [&](const at::Tensor& x) {  // q, k and v are slices of one tensor
        return Tensors{x.narrow(1, 0, key).view({N, c.key_heads, c.key_dim}),
                       x.narrow(1, key, key).view({N, c.key_heads, c.key_dim}),
                       x.narrow(1, 2 * key, value).view({N, c.value_heads, c.value_dim})};
      };
      const at::Tensor x = random_floats({N, 2 * key + value}, 1).to(type),
                       dout = random_floats({N, value}, 4).to(type),
                       g = -random_floats({N, c.value_heads}, 2).abs() * c.decay,
                       beta = random_floats({N, c.value_heads}, 3).sigmoid();
      DeltaRuleOptions options{.batch = c.batch, .scale = 1.0 / std::sqrt(static_cast<double>(c.key_dim)), .eps = 1e-6};
      if (c.segments) options.segments = documents(c.batch, c.length);
      auto twin = [&](const Tensors& in) {
        return Tensors{ref::delta_rule(in[0], in[1], in[2], in[3], in[4], options)};
      };
      Tensors inputs = parts(x), wide;
      inputs.push_back(g), inputs.push_back(beta);
      for (const auto& t : inputs) wide.push_back(t.to(at::kDouble));
      Tensors exact = oracle_gradients(twin, inputs, {dout});
      exact.insert(exact.begin(), twin(wide)[0]);

      DeltaRuleOptions there = options;
      there.segments = on_gpu(options.segments);
      const auto run = [&] {
        const Tensors in = parts(on_gpu(x));
        const at::Tensor gate = on_gpu(g), strength = on_gpu(beta), d = at::full_like(on_gpu(x), NAN),
                         dg = at::empty_like(gate), dbeta = at::empty_like(gate);
        const Tensors gradients = parts(d);
        const auto out = delta_rule_forward(in[0], in[1], in[2], gate, strength, there, true);
        delta_rule_backward(on_gpu(dout), in[0], in[1], in[2], gate, strength, out, there, gradients[0], gradients[1],
                            gradients[2], dg, dbeta);
        return Tensors{out.out.cpu(),      gradients[0].cpu(), gradients[1].cpu(),
                       gradients[2].cpu(), dg.cpu(),           dbeta.cpu()};
      };
      const Tensors got = run(), again = run();
      for (size_t i = 0; i < got.size(); ++i) {
        const double bound = i < 4 && type == at::kBFloat16 ? 8e-3 : (i == 0 ? 3e-6 : 1e-5);
        expect_close(got[i], exact[i], bound, name + " " + names[i]);
        EXPECT_TRUE(same_bits(got[i], again[i])) << name << " " << names[i];
      }
    }
}

TEST_F(CudaDelta, DecodingGoesOnFromTheState) {
  const int64_t T = 150, H = 2, Dk = 24, Dv = 40;
  const DeltaRuleOptions options{.scale = 0.2, .eps = 1e-6};
  const at::Tensor q = random_floats({T, 1, Dk}, 1), k = random_floats({T, 1, Dk}, 2), v = random_floats({T, H, Dv}, 3),
                   g = -random_floats({T, H}, 4).abs(), beta = random_floats({T, H}, 5).sigmoid();
  const at::Tensor exact_state = at::zeros({H, Dk, Dv}, at::kDouble), state = on_gpu(at::zeros({H, Dk, Dv}));
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const at::Tensor exact = ref::delta_rule(wide(q), wide(k), wide(v), wide(g), wide(beta), options, exact_state);
  Tensors out;
  for (int64_t begin = 0, count; begin < T; begin += count) {
    count = begin == 0 ? 70 : std::min<int64_t>(T - begin, begin % 3 + 1);
    const auto rows = [&](const at::Tensor& x) { return on_gpu(x.narrow(0, begin, count)); };
    out.push_back(delta_rule_decode(rows(q), rows(k), rows(v), rows(g), rows(beta), state, options).cpu());
  }
  expect_close(at::cat(out), exact, 3e-6, "out");
  expect_close(state.cpu(), exact_state, 3e-6, "state");
}

TEST_F(CudaDelta, TheConvolutionEqualsItsTwin) {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    const int64_t B = 2, T = 600, W = 134, taps = 4;
    ConvOptions options{.batch = B, .runs = {{64, 16, 48}, {0, 0, 16}, {130, 64, 70}}};
    options.segments = documents(B, T);
    const at::Tensor x = random_floats({B * T, 210}, 1).to(type), weight = random_floats({W, taps}, 2).to(type),
                     dy = random_floats({B * T, W}, 3).to(type);
    const auto twin = [&](const Tensors& in) -> Tensors { return {ref::causal_conv(in[0], in[1], options)}; };
    ConvOptions there = options;
    there.segments = on_gpu(options.segments);
    const at::Tensor dx = on_gpu(at::zeros_like(x)), dweight = on_gpu(at::ones({W, taps}));
    const at::Tensor y = causal_conv_forward(on_gpu(x), on_gpu(weight), there);
    causal_conv_backward(on_gpu(dy), on_gpu(x), on_gpu(weight), there, dx, dweight);
    const Tensors gradients = oracle_gradients(twin, {x, weight}, {dy});
    const double bound = type == at::kFloat ? 4e-6 : 1e-2;
    expect_close(y.cpu(), twin({x.to(at::kDouble), weight.to(at::kDouble)})[0], bound, "y");
    expect_close(dx.cpu(), gradients[0], bound, "dx");
    expect_close(dweight.cpu() - 1, gradients[1], bound, "dweight");

    const at::Tensor history = on_gpu(at::zeros({taps - 1, 210}, type));
    options.batch = 1, options.segments = at::Tensor();
    Tensors parts;
    for (int64_t begin = 0; begin < 9; begin += 3)
      parts.push_back(causal_conv_decode(on_gpu(x.narrow(0, begin, 3)), on_gpu(weight), history, options).cpu());
    const at::Tensor whole = causal_conv_forward(on_gpu(x.narrow(0, 0, 9)), on_gpu(weight), options);
    EXPECT_TRUE(same_bits(at::cat(parts), whole.cpu()));
    EXPECT_TRUE(same_bits(history.cpu(), x.narrow(0, 6, 3)));
  }
}

TEST_F(CudaDelta, GatesEqualTheirTwins) {
  const int64_t N = 700, K = 2, group = 3, H = K * group, D = 128, block = group * D + 9;
  for (auto type : {at::kFloat, at::kBFloat16}) {
    const double bound = type == at::kFloat ? 5e-6 : 1e-2;
    const at::Tensor x = random_floats({N, H, D}, 1).to(type), fused = random_floats({N, K, block}, 2, 2.0).to(type),
                     weight = random_floats({D}, 3).to(type), dy = random_floats({N, H, D}, 4).to(type);
    const auto gate = [&](const at::Tensor& all) { return all.narrow(2, 9, group * D).unflatten(2, {group, D}); };
    const at::Tensor z = on_gpu(fused), dz = on_gpu(at::zeros_like(fused)), dweight = on_gpu(at::ones({D}));
    const auto normed = [&](const Tensors& in) -> Tensors {
      return {ref::gated_norm(in[0], gate(in[1]), in[2], 1e-3)};
    };
    const auto out = gated_norm_forward(on_gpu(x), gate(z), on_gpu(weight), 1e-3);
    const at::Tensor dx =
        gated_norm_backward(on_gpu(dy), on_gpu(x), gate(z), on_gpu(weight), out.rstd, gate(dz), dweight);
    const Tensors exact = oracle_gradients(normed, {x, fused, weight}, {dy});
    expect_close(out.y.cpu(), normed({x.to(at::kDouble), fused.to(at::kDouble), weight.to(at::kDouble)})[0], bound,
                 "y");
    expect_close(dx.cpu(), exact[0], bound, "dx");
    expect_close(dz.cpu(), exact[1], bound, "dz");
    expect_close(dweight.cpu() - 1, exact[2], 1e-5, "dweight");

    const auto sigmoid = [&](const Tensors& in) -> Tensors { return {ref::sigmoid_gate(in[0], gate(in[1]))}; };
    dz.zero_();
    const at::Tensor by_sigmoid = sigmoid_gate_backward(on_gpu(dy), on_gpu(x), gate(z), gate(dz));
    const Tensors exact_sigmoid = oracle_gradients(sigmoid, {x, fused}, {dy});
    expect_close(sigmoid_gate_forward(on_gpu(x), gate(z)).cpu(), sigmoid({x.to(at::kDouble), fused.to(at::kDouble)})[0],
                 bound, "sigmoid");
    expect_close(by_sigmoid.cpu(), exact_sigmoid[0], bound, "sigmoid dx");
    expect_close(dz.cpu(), exact_sigmoid[1], bound, "sigmoid dz");

    const at::Tensor product = random_floats({N, 2 * H + 3}, 5, 4.0).to(type), A_log = random_floats({H}, 6).to(type),
                     dt_bias = random_floats({H}, 7).to(type), dg = random_floats({N, H}, 8),
                     dbeta = random_floats({N, H}, 9);
    const auto ba = [&](const at::Tensor& p) { return p.narrow(1, 3, 2 * H); };
    const auto gates = [&](const Tensors& in) -> Tensors {
      const auto [g, beta] = ref::delta_gates(in[0], in[1], in[2], K);
      return {g, beta};
    };
    const at::Tensor there = on_gpu(product), dproduct = on_gpu(at::zeros_like(product)),
                     dA_log = on_gpu(at::ones({H})), ddt_bias = on_gpu(at::ones({H}));
    const auto forward = delta_gates_forward(ba(there), on_gpu(A_log), on_gpu(dt_bias), K);
    delta_gates_backward(on_gpu(dg), on_gpu(dbeta), forward, ba(there), on_gpu(A_log), on_gpu(dt_bias), K, ba(dproduct),
                         dA_log, ddt_bias);
    const Tensors exact_gates = oracle_gradients(gates, {ba(product), A_log, dt_bias}, {dg, dbeta});
    expect_close(ba(dproduct).cpu(), exact_gates[0], bound, "dba");
    expect_close(dA_log.cpu() - 1, exact_gates[1], 1e-5, "dA_log");
    expect_close(ddt_bias.cpu() - 1, exact_gates[2], 1e-5, "ddt_bias");
  }
}

}  // namespace
}  // namespace cairn::kernels
