// The gated delta rule: chunks against the definition token by token, and what its bits may depend on.
#include "models/kernels/delta_rule.h"

#include "models/kernels/aten/delta_rule.h"
#include "models/kernels/ref/delta_rule.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using testing::Tensors;

struct Case {
  int64_t batch, length, key_heads, value_heads, key_dim, value_dim;
  bool segments = false, normed = true;
  double decay = 0.3;  // of the size of g
  bool fused = true;   // q, k and v are slices of one tensor

  std::string name() const {
    return fmt::format("B{} T{} Hk{} Hv{} Dk{} Dv{}{}{} decay {}", batch, length, key_heads, value_heads, key_dim,
                       value_dim, segments ? " segments" : "", normed ? " normed" : "", decay);
  }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {1, 1, 1, 1, 16, 16},
      {3, 5, 1, 2, 6, 10},
      {2, 63, 2, 2, 8, 20, false, true, 0.3, false},
      {1, 64, 2, 4, 16, 32},
      {1, 65, 1, 1, 32, 16},
      {2, 130, 2, 6, 20, 24},
      {2, 200, 2, 4, 64, 64, true},
      {1, 140, 1, 2, 128, 128, false, true, 0.02},
      {1, 193, 1, 1, 32, 48, false, false, 1.0},
      {2, 150, 3, 3, 12, 17, true, true, 30.0},  // states are forgotten at once
      {1, 180, 2, 2, 40, 24, false, true, 0.0},  // and never
  };
  return all;
}

struct Inputs {
  at::Tensor q, k, v, g, beta, dout;
  DeltaRuleOptions options;
  Tensors list() const { return {q, k, v, g, beta}; }
};

Inputs inputs_of(const Case& c) {
  const int64_t N = c.batch * c.length, key = c.key_heads * c.key_dim, value = c.value_heads * c.value_dim;
  Inputs in;
  const uint64_t seed = c.length * 31 + c.value_heads;
  const at::Tensor x = testing::random_floats({N, 2 * key + value}, seed);
  in.q = x.narrow(1, 0, key).view({N, c.key_heads, c.key_dim});
  in.k = x.narrow(1, key, key).view({N, c.key_heads, c.key_dim});
  in.v = x.narrow(1, 2 * key, value).view({N, c.value_heads, c.value_dim});
  if (!c.fused) in.q = in.q.contiguous(), in.k = in.k.contiguous(), in.v = in.v.contiguous();
  if (!c.normed) in.k = in.k * (0.9 / std::sqrt(static_cast<double>(c.key_dim)));
  in.g = -testing::random_floats({N, c.value_heads}, seed + 1).abs() * c.decay;
  in.beta = testing::random_floats({N, c.value_heads}, seed + 2).sigmoid();
  in.dout = testing::random_floats({N, value}, seed + 3);
  in.options = {
      .batch = c.batch, .scale = 1.0 / std::sqrt(static_cast<double>(c.key_dim)), .eps = c.normed ? 1e-6 : 0.0};
  if (c.segments) {
    // Documents of 1, 1, 3, 7, ... rows, some longer than a chunk.
    in.options.segments = at::empty({N}, at::kInt);
    for (int64_t n = 0, id = 0, left = 1, size = 1; n < N; ++n) {
      if (n % c.length == 0) left = size = 1 + n / c.length, id = 0;
      in.options.segments[n] = id;
      if (--left == 0) ++id, left = size = size == 1 && id == 1 ? 1 : (size * 2 + 1) % 131;
    }
  }
  return in;
}

// out, dq, dk, dv, dg, dbeta.
Tensors run(const Inputs& in) {
  const auto forward = delta_rule_forward(in.q, in.k, in.v, in.g, in.beta, in.options, true);
  const int64_t N = in.q.size(0), key = in.q.size(1) * in.q.size(2), value = in.v.size(1) * in.v.size(2);
  const at::Tensor d = at::full({N, 2 * key + value}, NAN);  // gradients go to slices of one tensor
  const at::Tensor dq = d.narrow(1, 0, key).view(in.q.sizes()), dk = d.narrow(1, key, key).view(in.k.sizes()),
                   dv = d.narrow(1, 2 * key, value).view(in.v.sizes());
  const at::Tensor dg = at::full(in.g.sizes(), NAN), dbeta = at::full(in.g.sizes(), NAN);
  delta_rule_backward(in.dout, in.q, in.k, in.v, in.g, in.beta, forward, in.options, dq, dk, dv, dg, dbeta);
  return {forward.out, dq, dk, dv, dg, dbeta};
}

// The definition in float64: out, dq, dk, dv, dg, dbeta.
const Tensors& exact_of(const Case& c) {
  static std::map<std::string, Tensors> known;
  Tensors& exact = known[c.name()];
  if (!exact.empty()) return exact;
  const Inputs in = inputs_of(c);
  at::AutoGradMode on(true);
  Tensors wide;
  for (const auto& x : in.list()) wide.push_back(x.to(at::kDouble).requires_grad_());
  const at::Tensor out = ref::delta_rule(wide[0], wide[1], wide[2], wide[3], wide[4], in.options);
  exact = torch::autograd::grad({out}, wide, {in.dout.to(at::kDouble)});
  exact.insert(exact.begin(), out.detach());
  return exact;
}

TEST(DeltaRule, ChunksEqualTheDefinitionForwardAndBackward) {
  const char* names[] = {"out", "dq", "dk", "dv", "dg", "dbeta"};
  for (const Case& c : cases()) {
    const Tensors &exact = exact_of(c), fast = run(inputs_of(c));
    for (size_t i = 0; i < fast.size(); ++i) {
      testing::expect_close(fast[i], exact[i], i == 0 ? 3e-6 : 1e-5, c.name() + " " + names[i]);
      // As a whole, since a gradient's greatest element may hide the others.
      const double off = (fast[i].to(at::kDouble) - exact[i]).norm().item<double>();
      EXPECT_LE(off, 3e-6 * exact[i].norm().item<double>() + 1e-9) << c.name() << " " << names[i];
    }
  }
}

TEST(DeltaRule, TwinsGradientsAreThoseOfFiniteDifferences) {
  for (const Case& c : {Case{2, 7, 2, 4, 5, 3, true}, Case{1, 9, 1, 1, 4, 6, false, false}}) {
    const Inputs in = inputs_of(c);
    const auto twin = [&](const Tensors& x) -> Tensors {
      return {ref::delta_rule(x[0], x[1], x[2], x[3], x[4], in.options)};
    };
    testing::expect_finite_differences(twin, in.list(), {in.dout},
                                       testing::oracle_gradients(twin, in.list(), {in.dout}), 1e-7, c.name());
  }
}

// The form in chunks of LibTorch's operators, which other devices and types take.
TEST(DeltaRule, ChunksOfOperatorsEqualTheDefinition) {
  for (const Case& c : cases()) {
    const Inputs in = inputs_of(c);
    const auto chunked = [&](const Tensors& x) -> Tensors {
      return {aten::delta_rule(x[0], x[1], x[2], x[3], x[4], in.options)};
    };
    Tensors wide;
    for (const auto& x : in.list()) wide.push_back(x.to(at::kDouble));
    const Tensors& exact = exact_of(c);
    testing::expect_close(chunked(wide)[0], exact[0], 1e-10, c.name());
    const Tensors got = testing::oracle_gradients(chunked, in.list(), {in.dout});
    for (size_t i = 0; i < got.size(); ++i)
      testing::expect_close(got[i], exact[i + 1], 1e-9, c.name() + " gradient " + std::to_string(i));
  }
}

TEST(DeltaRule, BitsDependNeitherOnThreadsNorOnTheWidthOfVectors) {
  for (const Case& c : cases()) {
    const Inputs in = inputs_of(c);
    testing::expect_same_bits_everywhere([&] { return run(in); }, c.name());
  }
}

// A sequence alone gives what it gives among others, and a document alone what it gives packed with others.
TEST(DeltaRule, BitsDoNotDependOnOtherSequencesOrDocuments) {
  for (const Case& c : cases()) {
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
        EXPECT_TRUE(testing::same_bits(one[i], rows(all[i])))
            << c.name() << " rows " << begin << " to " << end << ", output " << i;
    }
  }
}

// A prompt in chunks, then pieces and single tokens, equal the definition in float64; with any number of threads alike.
TEST(DeltaRule, DecodingGoesOnFromTheState) {
  for (const Case& c : cases()) {
    if (c.segments) continue;
    Inputs in = inputs_of(c);
    in.options.batch = 1;
    const int64_t T = c.length;
    const auto rows = [&](const at::Tensor& x, int64_t begin, int64_t count) { return x.narrow(0, begin, count); };
    Tensors wide;
    for (const auto& x : in.list()) wide.push_back(rows(x, 0, T).to(at::kDouble));
    const at::Tensor state_exact = at::zeros({c.value_heads, c.key_dim, c.value_dim}, at::kDouble);
    const at::Tensor exact = ref::delta_rule(wide[0], wide[1], wide[2], wide[3], wide[4], in.options, state_exact);
    for (int64_t prompt : {int64_t{0}, int64_t{1}, T / 2, T}) {
      testing::expect_same_bits_everywhere(
          [&]() -> Tensors {
            const at::Tensor state = at::zeros({c.value_heads, c.key_dim, c.value_dim});
            Tensors out;
            for (int64_t begin = 0, count; begin < T; begin += count) {
              count = begin == 0 && prompt > 0 ? prompt : std::min<int64_t>(T - begin, begin % 3 + 1);
              out.push_back(delta_rule_decode(rows(in.q, begin, count), rows(in.k, begin, count),
                                              rows(in.v, begin, count), rows(in.g, begin, count).contiguous(),
                                              rows(in.beta, begin, count).contiguous(), state, in.options));
            }
            const at::Tensor all = at::cat(out);
            testing::expect_close(all, exact, 3e-6, c.name() + " decoded");
            testing::expect_close(state, state_exact, 3e-6, c.name() + " state");
            return {all, state};
          },
          c.name());
    }
  }
}

// Without a backward pass nothing is kept, and the result is the same.
TEST(DeltaRule, KeepsNothingWhereNothingIsAskedFor) {
  const Inputs in = inputs_of({1, 150, 2, 4, 16, 16});
  const auto kept = delta_rule_forward(in.q, in.k, in.v, in.g, in.beta, in.options, true);
  const auto plain = delta_rule_forward(in.q, in.k, in.v, in.g, in.beta, in.options, false);
  EXPECT_TRUE(testing::same_bits(kept.out, plain.out));
  EXPECT_FALSE(plain.corrections.defined() || plain.states.defined());
  EXPECT_EQ(kept.states.size(0), 2);  // of three chunks the first has none
}

TEST(DeltaRule, RefusesShapesThatDoNotFit) {
  const Inputs in = inputs_of({1, 8, 2, 4, 8, 8});
  const auto message = [&](const Inputs& x) {
    return testing::message_of([&] { delta_rule_forward(x.q, x.k, x.v, x.g, x.beta, x.options, false); });
  };
  Inputs bad = in;
  bad.v = at::randn({8, 3, 8});
  EXPECT_NE(message(bad).find("Hk dividing Hv"), std::string::npos);
  bad = in, bad.g = at::randn({8, 3});
  EXPECT_NE(message(bad).find("g:"), std::string::npos);
  bad = in, bad.q = in.q.to(at::kDouble);
  EXPECT_NE(message(bad).find("q:"), std::string::npos);
  bad = in, bad.options.segments = at::zeros({7}, at::kInt);
  EXPECT_NE(message(bad).find("segments"), std::string::npos);
  bad = in, bad.options.batch = 3;
  EXPECT_NE(message(bad).find("batch 3"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
