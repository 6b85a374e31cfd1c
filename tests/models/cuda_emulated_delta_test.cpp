// labels: quick
// The CUDA kernels of Gated DeltaNet, run on a CPU block by block, against their twins.
#include "tests/models/cuda_emulator.h"  // first: the .cu files need it

#include "models/kernels/cuda/causal_conv.cu"
#include "models/kernels/cuda/delta_backward.cu"
#include "models/kernels/cuda/delta_forward.cu"
#include "models/kernels/cuda/delta_spans.h"
#include "models/kernels/cuda/gated_norm.cu"
#include "models/kernels/ref/causal_conv.h"
#include "models/kernels/ref/delta_rule.h"
#include "models/kernels/ref/gated_norm.h"
#include "tests/models/emulated_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

cuda::Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16;
}
float* floats_of(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr<float>() : nullptr; }
at::Tensor nothing(at::IntArrayRef shape, at::ScalarType type = at::kFloat) { return at::full(shape, NAN, type); }

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

// ---- delta rule

struct Case {
  int64_t batch, length, key_heads, value_heads, key_dim, value_dim;
  bool segments = false, normed = true;
  double decay = 0.3;  // of the size of g

  std::string name() const {
    return fmt::format("B{} T{} Hk{} Hv{} Dk{} Dv{}{}{} decay {}", batch, length, key_heads, value_heads, key_dim,
                       value_dim, segments ? " segments" : "", normed ? " normed" : "", decay);
  }
};

// Lengths around a chunk, widths around a tile and the state's columns.
const std::vector<Case> kCases = {
    {1, 1, 1, 1, 16, 16},
    {3, 5, 1, 2, 6, 10},
    {1, 64, 1, 2, 16, 32},
    {1, 65, 1, 1, 32, 16},
    {2, 130, 1, 3, 20, 24},
    {2, 200, 1, 2, 24, 40, true},
    {1, 140, 1, 1, 128, 70, false, true, 0.02},
    {1, 193, 1, 1, 32, 48, false, false, 1.0},
    {2, 150, 2, 2, 12, 17, true, true, 30.0},  // states are forgotten at once
    {1, 180, 2, 2, 40, 24, false, true, 0.0},  // and never
};

struct Inputs {
  at::Tensor q, k, v, g, beta, dout;
  DeltaRuleOptions options;
  Tensors list() const { return {q, k, v, g, beta}; }
};

Inputs inputs_of(const Case& c) {
  const int64_t N = c.batch * c.length, key = c.key_heads * c.key_dim, value = c.value_heads * c.value_dim;
  Inputs in;
  const uint64_t seed = c.length * 31 + c.value_heads;
  const at::Tensor x = random_floats({N, 2 * key + value}, seed);  // q, k and v are slices of one tensor
  in.q = x.narrow(1, 0, key).view({N, c.key_heads, c.key_dim});
  in.k = x.narrow(1, key, key).view({N, c.key_heads, c.key_dim});
  in.v = x.narrow(1, 2 * key, value).view({N, c.value_heads, c.value_dim});
  if (!c.normed) in.k = in.k * (0.9 / std::sqrt(static_cast<double>(c.key_dim)));
  in.g = -random_floats({N, c.value_heads}, seed + 1).abs() * c.decay;
  in.beta = random_floats({N, c.value_heads}, seed + 2).sigmoid();
  in.dout = random_floats({N, value}, seed + 3);
  in.options = {
      .batch = c.batch, .scale = 1.0 / std::sqrt(static_cast<double>(c.key_dim)), .eps = c.normed ? 1e-6 : 0.0};
  if (c.segments) in.options.segments = documents(c.batch, c.length);
  return in;
}

// A call with its workspaces.
struct Prepared {
  cuda::DeltaSpans spans;
  cuda::DeltaRule call;
  at::Tensor corrections, states, by_key, q_factor, k_factor, gate, total;

  explicit Prepared(const Inputs& in, const at::Tensor& state = {}) {
    const int64_t N = in.q.size(0), Hk = in.k.size(1), Hv = in.v.size(1), Dk = in.k.size(2), Dv = in.v.size(2);
    spans = cuda::delta_spans(N, in.options.batch,
                              in.options.segments.defined() ? in.options.segments.const_data_ptr<int32_t>() : nullptr,
                              state.defined());
    const int64_t count = static_cast<int64_t>(spans.all.size());
    corrections = nothing({N, Hv, Dv}), states = nothing({spans.states, Hv, Dk, Dv});
    if (state.defined()) states[0].copy_(state);
    by_key = nothing({N, Hv, Dk}), gate = nothing({N, Hv}), total = nothing({count, Hv});
    q_factor = nothing({N, Hk}), k_factor = nothing({N, Hk});
    call.type = type_of(in.q);
    call.batch = in.options.batch, call.rows = N, call.key_heads = Hk, call.value_heads = Hv;
    call.key_dim = Dk, call.value_dim = Dv;
    call.spans = count, call.states_count = spans.states;
    call.span = spans.all.data(), call.first_span = spans.first.data();
    call.scale = static_cast<float>(in.options.scale), call.eps = static_cast<float>(in.options.eps);
    call.q = in.q.const_data_ptr(), call.k = in.k.const_data_ptr(), call.v = in.v.const_data_ptr();
    call.q_stride = in.q.stride(0), call.k_stride = in.k.stride(0), call.v_stride = in.v.stride(0);
    call.g = floats_of(in.g), call.beta = floats_of(in.beta);
    call.corrections = floats_of(corrections), call.states = floats_of(states);
    call.q_factor = floats_of(q_factor), call.k_factor = floats_of(k_factor), call.by_key = floats_of(by_key);
    call.gate = floats_of(gate), call.total = floats_of(total);
  }
  at::Tensor forward() const {
    const at::Tensor out = nothing({call.rows, call.value_heads * call.value_dim},
                                   call.type == cuda::Type::float32 ? at::kFloat : at::kBFloat16);
    cuda::delta_rule_forward({call, out.mutable_data_ptr()}, nullptr);
    return out;
  }
};

// out, dq, dk, dv, dg, dbeta.
Tensors run(const Inputs& in) {
  const Prepared forward(in);
  const at::Tensor out = forward.forward();
  Prepared backward(in);  // workspaces of its own
  cuda::DeltaRuleBackward job;
  job.call = backward.call, job.call.corrections = forward.call.corrections, job.call.states = forward.call.states;
  const int64_t N = in.q.size(0), key = in.q.size(1) * in.q.size(2), value = in.v.size(1) * in.v.size(2);
  const at::Tensor d = nothing({N, 2 * key + value}, in.q.scalar_type());  // gradients go to slices of one tensor
  const at::Tensor dq = d.narrow(1, 0, key).view(in.q.sizes()), dk = d.narrow(1, key, key).view(in.k.sizes()),
                   dv = d.narrow(1, 2 * key, value).view(in.v.sizes());
  const at::Tensor dg = nothing(in.g.sizes()), dbeta = nothing(in.g.sizes());
  const at::Tensor dright = nothing(forward.corrections.sizes()), dkeys = nothing(forward.by_key.sizes()),
                   dstates = nothing(forward.states.sizes());
  job.dout = in.dout.const_data_ptr();
  job.dq = dq.mutable_data_ptr(), job.dk = dk.mutable_data_ptr(), job.dv = dv.mutable_data_ptr();
  job.dq_stride = dq.stride(0), job.dk_stride = dk.stride(0), job.dv_stride = dv.stride(0);
  job.dg = floats_of(dg), job.dbeta = floats_of(dbeta);
  job.dright = floats_of(dright), job.dkeys = floats_of(dkeys), job.dstates = floats_of(dstates);
  cuda::delta_rule_backward(job, nullptr);
  return {out, dq, dk, dv, dg, dbeta};
}

// The definition in float64: out, dq, dk, dv, dg, dbeta.
Tensors exact_of(const Inputs& in) {
  at::AutoGradMode on(true);
  Tensors wide;
  for (const auto& x : in.list()) wide.push_back(x.to(at::kDouble).requires_grad_());
  const at::Tensor out = ref::delta_rule(wide[0], wide[1], wide[2], wide[3], wide[4], in.options);
  Tensors exact = torch::autograd::grad({out}, wide, {in.dout.to(at::kDouble)});
  exact.insert(exact.begin(), out.detach());
  return exact;
}

const char* kOutputs[] = {"out", "dq", "dk", "dv", "dg", "dbeta"};

TEST(EmulatedDeltaRule, EqualsTheDefinitionForwardAndBackward) {
  for (const Case& c : kCases) {
    const Inputs in = inputs_of(c);
    const Tensors exact = exact_of(in);
    // The larger ones once: they have no barrier that the others lack.
    const Tensors got = c.length <= 140 ? in_both_orders([&] { return run(in); }, c.name()) : run(in);
    for (size_t i = 0; i < got.size(); ++i) {
      expect_close(got[i], exact[i], i == 0 ? 3e-6 : 1e-5, c.name() + " " + kOutputs[i]);
      // As a whole, since a gradient's greatest element may hide the others.
      const double off = (got[i].to(at::kDouble) - exact[i]).norm().item<double>();
      EXPECT_LE(off, 3e-6 * exact[i].norm().item<double>() + 1e-9) << c.name() << " " << kOutputs[i];
    }
  }
}

TEST(EmulatedDeltaRule, TakesBfloat16) {
  Inputs in = inputs_of({1, 100, 1, 2, 20, 24, true});
  for (at::Tensor* x : {&in.q, &in.k, &in.v, &in.dout}) *x = x->to(at::kBFloat16);
  const Tensors exact = exact_of(in), got = run(in);
  for (size_t i = 0; i < got.size(); ++i)
    expect_close(got[i], exact[i], i < 4 ? 5e-3 : 1e-5, std::string("bfloat16 ") + kOutputs[i]);
}

// A document alone gives the bits that it gives packed with others.
TEST(EmulatedDeltaRule, BitsDoNotDependOnOtherDocuments) {
  for (const Case& c : {kCases[1], kCases[5]}) {
    const Inputs in = inputs_of(c);
    const Tensors all = run(in);
    const int64_t N = c.batch * c.length;
    const at::Tensor segments = in.options.segments.defined() ? in.options.segments : at::zeros({N}, at::kInt);
    for (int64_t begin = 0, end; begin < N; begin = end) {
      end = begin + 1;
      while (end % c.length != 0 && segments[end].item<int>() == segments[begin].item<int>()) ++end;
      const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, end - begin); };
      Inputs alone{rows(in.q), rows(in.k), rows(in.v), rows(in.g), rows(in.beta), rows(in.dout), in.options};
      alone.options.batch = 1, alone.options.segments = at::Tensor();
      const Tensors one = run(alone);
      for (size_t i = 0; i < one.size(); ++i)
        EXPECT_TRUE(same_bits(one[i], rows(all[i]))) << c.name() << " rows " << begin << " to " << end << " " << i;
    }
  }
}

TEST(EmulatedDeltaRule, GoesOnFromAState) {
  const Inputs in = inputs_of({1, 150, 1, 2, 24, 40});
  Tensors wide;
  for (const auto& x : in.list()) wide.push_back(x.to(at::kDouble));
  const at::Tensor exact_state = random_floats({2, 24, 40}, 9).to(at::kDouble), state = exact_state.to(at::kFloat);
  const at::Tensor exact = ref::delta_rule(wide[0], wide[1], wide[2], wide[3], wide[4], in.options, exact_state);
  Tensors out;
  for (int64_t begin = 0, count; begin < 150; begin += count) {
    count = std::vector<int64_t>{64, 1, 3, 82}[out.size()];
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, count); };
    const Prepared part({rows(in.q), rows(in.k), rows(in.v), rows(in.g), rows(in.beta), {}, in.options}, state);
    out.push_back(part.forward());
    state.copy_(part.states[part.spans.states - 1]);
  }
  expect_close(at::cat(out), exact, 3e-6, "out");
  expect_close(state, exact_state, 3e-6, "state");
}

TEST(EmulatedDeltaRule, RefusesHeadsThatDoNotFit) {
  const Inputs in = inputs_of({1, 3, 1, 1, 257, 4});
  EXPECT_NE(message_of([&] { run(in); }).find("heads of width 257, expected at most 256"), std::string::npos);
}

// ---- convolution

struct ConvCase {
  int64_t batch, length, taps;
  std::vector<ConvRun> runs;
  int64_t columns;  // of x
  bool segments = false;
};

const std::vector<ConvCase> kConvCases = {
    {1, 1, 4, {{0, 0, 16}}, 16},
    {2, 3, 4, {{0, 0, 5}}, 5},
    {2, 70, 4, {{64, 16, 48}, {0, 0, 16}, {130, 64, 200}}, 330, true},
    {1, 70, 1, {{3, 0, 20}}, 30},
    {2, 50, 8, {{0, 0, 18}}, 18, true},
};

cuda::CausalConv conv_job(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options,
                          const at::Tensor& columns) {
  cuda::CausalConv job;
  job.type = type_of(x), job.weight_type = type_of(weight);
  job.rows = x.size(0), job.length = job.rows / options.batch, job.width = weight.size(0), job.taps = weight.size(1);
  job.segments = options.segments.defined() ? options.segments.const_data_ptr<int32_t>() : nullptr;
  job.column = columns.const_data_ptr<int32_t>();
  job.x = x.const_data_ptr(), job.x_stride = x.stride(0), job.weight = weight.const_data_ptr();
  return job;
}

at::Tensor columns_of(const std::vector<ConvRun>& runs, int64_t width) {
  const at::Tensor columns = at::full({width}, -1, at::kInt);
  for (const ConvRun& run : runs)
    columns.narrow(0, run.to, run.count).copy_(at::arange(run.from, run.from + run.count, at::kInt));
  return columns;
}

TEST(EmulatedCausalConv, EqualsTheTwinForwardAndBackward) {
  for (const ConvCase& c : kConvCases)
    for (auto type : {at::kFloat, at::kBFloat16}) {
      int64_t width = 0;
      for (const auto& run : c.runs) width += run.count;
      const int64_t N = c.batch * c.length;
      const std::string name = fmt::format("T {} taps {} {}", c.length, c.taps, c10::toString(type));
      const at::Tensor x = random_floats({N, c.columns}, 1).to(type), dy = random_floats({N, width}, 3).to(type),
                       weight = random_floats({width, c.taps}, 2).to(type), columns = columns_of(c.runs, width);
      ConvOptions options{.batch = c.batch, .runs = c.runs};
      if (c.segments) options.segments = documents(c.batch, c.length);
      const auto twin = [&](const Tensors& in) -> Tensors { return {ref::causal_conv(in[0], in[1], options)}; };
      const Tensors got = in_both_orders(
          [&]() -> Tensors {
            const at::Tensor y = nothing({N, width}, type), dx = at::zeros_like(x), given_up = dy.clone(),
                             dweight = at::full(weight.sizes(), 2.0),
                             partial = nothing({cuda::weight_pieces(N), width, cuda::kConvMaxTaps});
            cuda::CausalConv job = conv_job(x, weight, options, columns);
            job.y = y.mutable_data_ptr();
            cuda::causal_conv_forward(job, nullptr);
            job.dy = given_up.mutable_data_ptr(), job.dx = dx.mutable_data_ptr(), job.dx_stride = dx.stride(0);
            job.dweight = floats_of(dweight), job.partial = floats_of(partial);
            cuda::causal_conv_backward(job, nullptr);
            return {y, dx, dweight};
          },
          name);
      const Tensors gradients = oracle_gradients(twin, {x, weight}, {dy});
      const double tolerance = type == at::kFloat ? 2e-6 : 5e-3;
      expect_close(got[0], twin({x.to(at::kDouble), weight.to(at::kDouble)})[0], tolerance, name);
      expect_close(got[1], gradients[0], 2 * tolerance, name + " dx");
      expect_close(got[2] - 2.0, gradients[1], 2 * tolerance, name + " dweight");
    }
}

TEST(EmulatedCausalConv, DecodingGivesTheSameBits) {
  const ConvCase& c = kConvCases[0];
  const int64_t N = 20, W = 16, past = c.taps - 1;
  const at::Tensor x = random_floats({N, W}, 1), weight = random_floats({W, c.taps}, 2),
                   columns = columns_of(c.runs, W);
  const at::Tensor all = nothing({N, W}), decoded = nothing({N, W});
  cuda::CausalConv job = conv_job(x, weight, {}, columns);
  job.y = all.mutable_data_ptr();
  cuda::causal_conv_forward(job, nullptr);
  const at::Tensor padded = at::cat({at::zeros({past, W}), x});
  for (int64_t begin = 0, count; begin < N; begin += count) {
    count = std::min<int64_t>(N - begin, begin % 3 + 1);
    const at::Tensor history = padded.narrow(0, begin, past).clone();
    cuda::CausalConv part = conv_job(x.narrow(0, begin, count), weight, {}, columns);
    part.history = history.const_data_ptr(), part.history_stride = W, part.past = past;
    part.y = decoded.narrow(0, begin, count).mutable_data_ptr();
    cuda::causal_conv_forward(part, nullptr);
  }
  EXPECT_TRUE(same_bits(all, decoded));
}

// ---- gates

TEST(EmulatedGatedNorm, EqualsTheTwinForwardAndBackward) {
  struct NormCase {
    int64_t tokens, key_heads, group, width;
  };
  for (const NormCase& c : {NormCase{1, 1, 1, 16}, NormCase{5, 2, 3, 10}, NormCase{70, 2, 1, 33}})
    for (bool normed : {true, false})
      for (auto type : {at::kFloat, at::kBFloat16}) {
        const int64_t H = c.key_heads * c.group, block = c.group * c.width + 9;  // what else a key head's columns hold
        const std::string name = fmt::format("{} tokens {} {}", c.tokens, normed, c10::toString(type));
        const at::Tensor x = random_floats({c.tokens, H, c.width}, 1).to(type),
                         fused = random_floats({c.tokens, c.key_heads, block}, 2, 2.0).to(type),
                         weight = random_floats({c.width}, 3).to(type), dy = random_floats(x.sizes(), 4).to(type);
        const auto gate = [&](const at::Tensor& all) {
          return all.narrow(2, 9, c.group * c.width).unflatten(2, {c.group, c.width});
        };
        const auto twin = [&](const Tensors& in) -> Tensors {
          return {normed ? ref::gated_norm(in[0], gate(in[1]), in[2], 1e-3)
                         : ref::sigmoid_gate(in[0], gate(in[1])) + 0 * in[2]};
        };
        const Tensors got = in_both_orders(
            [&]() -> Tensors {
              const at::Tensor y = nothing(x.sizes(), type), rstd = nothing({c.tokens * H}), dx = dy.clone(),
                               dfused = at::zeros_like(fused), dweight = at::ones({c.width}),
                               partial = nothing({cuda::weight_pieces(c.tokens * H), c.width});
              cuda::GatedNorm job;
              job.type = type_of(x), job.weight_type = type_of(weight);
              job.tokens = c.tokens, job.heads = H, job.columns = c.width, job.eps = 1e-3f;
              job.x = x.const_data_ptr(), job.z = gate(fused).const_data_ptr();
              job.z_strides = job.dz_strides = {c.key_heads * block, block, c.group};
              if (normed) job.weight = weight.const_data_ptr(), job.rstd = floats_of(rstd);
              job.y = y.mutable_data_ptr();
              cuda::gated_norm_forward(job, nullptr);
              job.dy = dx.const_data_ptr(), job.dx = dx.mutable_data_ptr();  // in its place
              job.dz = gate(dfused).mutable_data_ptr();
              if (normed) job.dweight = floats_of(dweight), job.partial = floats_of(partial);
              cuda::gated_norm_backward(job, nullptr);
              return {y, dx, dfused, dweight};
            },
            name);
        const Tensors gradients = oracle_gradients(twin, {x, fused, weight}, {dy});
        const double tolerance = type == at::kFloat ? 2e-6 : 5e-3;
        expect_close(got[0], twin({x.to(at::kDouble), fused.to(at::kDouble), weight.to(at::kDouble)})[0], tolerance,
                     name);
        expect_close(got[1], gradients[0], 2 * tolerance, name + " dx");
        expect_close(got[2], gradients[1], 2 * tolerance, name + " dz");
        expect_close(got[3] - 1.0, gradients[2], 4e-6, name + " dweight");
      }
}

TEST(EmulatedDeltaGates, EqualTheTwinForwardAndBackward) {
  for (auto [N, key_heads, H] : {std::tuple{1, 1, 1}, {70, 2, 6}, {9, 16, 48}})
    for (auto type : {at::kFloat, at::kBFloat16}) {
      const std::string name = fmt::format("N {} heads {} {}", N, H, c10::toString(type));
      // Slices of a wider product; large values too.
      const at::Tensor product = random_floats({N, 2 * H + 3}, 1, 4.0).to(type), ba = product.narrow(1, 3, 2 * H),
                       A_log = random_floats({H}, 2).to(type), dt_bias = random_floats({H}, 3).to(type),
                       dg = random_floats({N, H}, 4), dbeta = random_floats({N, H}, 5);
      const auto twin = [&, heads = key_heads](const Tensors& in) -> Tensors {
        const auto [g, beta] = ref::delta_gates(in[0], in[1], in[2], heads);
        return {g, beta};
      };
      const Tensors got = in_both_orders(
          [&, N = N, key_heads = key_heads, H = H]() -> Tensors {
            const at::Tensor g = nothing({N, H}), beta = nothing({N, H}), dproduct = at::zeros_like(product),
                             dba = dproduct.narrow(1, 3, 2 * H), dA_log = at::ones({H}), ddt_bias = at::ones({H}),
                             partial = nothing({cuda::weight_pieces(N), H, 2});
            cuda::DeltaGates job;
            job.type = type_of(ba), job.weight_type = type_of(A_log);
            job.rows = N, job.key_heads = key_heads, job.heads = H;
            job.ba = ba.const_data_ptr(), job.ba_stride = job.dba_stride = ba.stride(0);
            job.A_log = A_log.const_data_ptr(), job.dt_bias = dt_bias.const_data_ptr();
            job.g = floats_of(g), job.beta = floats_of(beta);
            cuda::delta_gates_forward(job, nullptr);
            job.dg = floats_of(dg), job.dbeta = floats_of(dbeta), job.dba = dba.mutable_data_ptr();
            job.dA_log = floats_of(dA_log), job.ddt_bias = floats_of(ddt_bias), job.partial = floats_of(partial);
            cuda::delta_gates_backward(job, nullptr);
            return {g, beta, dba.contiguous(), dA_log, ddt_bias};
          },
          name);
      const Tensors exact = twin({ba.to(at::kDouble), A_log.to(at::kDouble), dt_bias.to(at::kDouble)});
      const Tensors gradients = oracle_gradients(twin, {ba, A_log, dt_bias}, {dg, dbeta});
      expect_close(got[0], exact[0], 2e-6, name + " g");
      expect_close(got[1], exact[1], 2e-6, name + " beta");
      expect_close(got[2], gradients[0], type == at::kFloat ? 4e-6 : 5e-3, name + " dba");
      expect_close(got[3] - 1.0, gradients[1], 4e-6, name + " dA_log");
      expect_close(got[4] - 1.0, gradients[2], 4e-6, name + " ddt_bias");
    }
}

}  // namespace
}  // namespace cairn::kernels
