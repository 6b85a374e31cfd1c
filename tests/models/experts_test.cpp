// labels: quick
#include "models/kernels/grouped_linear.h"

#include "models/kernels/ref/grouped_linear.h"
#include "models/kernels/ref/router.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

// ---- routing

struct RouterCase {
  int64_t N, E;
  RouterOptions options;
  bool bias;
};
using Scoring = RouterOptions::Scoring;

std::vector<RouterCase> router_cases() {
  return {
      {1, 1, {.topk = 1}, false},
      {7, 5, {.topk = 5, .normalise = true}, false},
      {130, 8, {.topk = 2, .normalise = true}, false},
      {130, 64, {.topk = 4, .scale = 1.5}, false},
      {65, 33, {.scoring = Scoring::sigmoid, .topk = 6, .normalise = true, .scale = 2.5}, true},
      {65, 32, {.scoring = Scoring::sigmoid, .topk = 4, .scale = 0.5, .groups = 8, .topk_groups = 3}, true},
      {40, 24, {.scoring = Scoring::sigmoid, .topk = 6, .normalise = true, .groups = 4, .topk_groups = 2}, true},
      {50, 32, {.scoring = Scoring::softmax_topk, .topk = 4}, false},
      {50, 20, {.scoring = Scoring::softmax_topk, .topk = 3, .scale = 2}, true},
  };
}

TEST(Router, EqualsItsTwin) {
  for (const auto& c : router_cases()) {
    const std::string name = fmt::format("{} x {}, scoring {}", c.N, c.E, static_cast<int>(c.options.scoring));
    const auto logits = random_floats({c.N, c.E}, 1, 2), dweights = random_floats({c.N, c.options.topk}, 2);
    const auto bias = c.bias ? random_floats({c.E}, 3, 0.3) : at::Tensor();
    const Routing got = route(logits, bias, c.options);
    const Routing twin = ref::route(logits, bias, c.options);
    EXPECT_TRUE(at::equal(got.experts, twin.experts)) << name;
    const auto wide_bias = bias.defined() ? bias.to(at::kDouble) : bias;
    const Routing wide = ref::route(logits.to(at::kDouble), wide_bias, c.options);
    ASSERT_TRUE(at::equal(got.experts, wide.experts)) << name;
    expect_close(got.weights, wide.weights, 1e-6, name + " weights");
    expect_close(got.scores, wide.scores, 1e-6, name + " scores");
    expect_close(got.lse, wide.lse, 1e-6, name + " lse");
    const auto share = wide.scores / wide.scores.sum(-1, true);
    expect_close(got.entropy, at::special_entr(share).sum(-1), 2e-6, name + " entropy");

    for (int kind = 0; kind < 4; ++kind) {
      RouterAux aux;
      if (kind & 1) aux.balance = random_floats({c.N % 5 == 0 ? 5 : 1, c.E}, 4);
      if (kind & 2) aux.z = 0.3;
      auto f = [&](const Tensors& in) {
        const Routing r = ref::route(in[0], wide_bias, c.options);
        const at::Tensor loss = ref::router_aux_loss(r, c.options, aux);
        return Tensors{r.weights, loss.defined() ? loss : in[0].sum() * 0};
      };
      const Tensors cotangents{dweights, at::ones({})};
      const auto gradient = route_backward(dweights, logits, got, c.options, aux);
      expect_close(gradient, oracle_gradients(f, {logits}, cotangents)[0], 2e-6, name + " backward");
    }
  }
}

TEST(Router, TiesGoToTheLowerExpert) {
  // All equal; then equal groups; then two values.
  for (const auto& c : router_cases()) {
    const Routing got = route(at::zeros({3, c.E}), {}, c.options);
    for (int64_t j = 0; j < c.options.topk; ++j) EXPECT_EQ(got.experts[1][j].item<int>(), j) << c.E;
  }
  const auto logits = at::tensor({1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f, 0.0f, 0.0f}).view({1, 8});
  for (auto scoring : {Scoring::softmax, Scoring::sigmoid, Scoring::softmax_topk}) {
    const RouterOptions options{.scoring = scoring, .topk = 5};
    EXPECT_TRUE(at::equal(route(logits, {}, options).experts, at::tensor({1, 3, 5, 0, 2}, at::kInt).view({1, 5})));
    EXPECT_TRUE(at::equal(ref::route(logits, {}, options).experts, at::tensor({1, 3, 5, 0, 2}, at::kInt).view({1, 5})));
  }
}

TEST(Router, SurvivesWhatIsNotANumber) {
  auto logits = random_floats({2, 6}, 1);
  logits[0].fill_(std::numeric_limits<float>::quiet_NaN());
  for (const RouterOptions& options :
       {RouterOptions{.topk = 3},
        RouterOptions{.scoring = Scoring::sigmoid, .topk = 3, .groups = 3, .topk_groups = 2}}) {
    const Routing got = route(logits, {}, options);
    EXPECT_GE(got.experts.min().item<int>(), 0);
    EXPECT_LT(got.experts.max().item<int>(), 6);
    EXPECT_TRUE(got.weights[0].isnan().all().item<bool>());
    EXPECT_FALSE(got.weights[1].isnan().any().item<bool>());
  }
}

TEST(Router, SameBitsEverywhere) {
  const auto logits = random_floats({700, 40}, 1, 2), dweights = random_floats({700, 4}, 2),
             bias = random_floats({40}, 3);
  for (auto scoring : {Scoring::softmax, Scoring::sigmoid, Scoring::softmax_topk}) {
    const RouterOptions options{.scoring = scoring, .topk = 4, .normalise = true, .groups = 4, .topk_groups = 2};
    const RouterAux aux{random_floats({7, 40}, 5), 0.1};
    expect_same_bits_everywhere(
        [&] {
          const Routing r = route(logits, bias, options);
          return Tensors{r.weights, r.scores, r.lse, route_backward(dweights, logits, r, options, aux)};
        },
        "router");
  }
}

TEST(Router, SaysWhatDoesNotFit) {
  const auto logits = random_floats({3, 8}, 1);
  EXPECT_NE(message_of([&] { route(logits, {}, {.topk = 9}); }).find("9 of 8 experts"), std::string::npos);
  EXPECT_NE(message_of([&] { route(logits, {}, {.topk = 1, .groups = 3}); }).find("groups"), std::string::npos);
  EXPECT_NE(message_of([&] { route(logits, {}, {.topk = 5, .groups = 4, .topk_groups = 2}); }).find("5 of 8"),
            std::string::npos);
  EXPECT_NE(message_of([&] { route(logits.t(), {}, {.topk = 1}); }).find("logits"), std::string::npos);
}

// ---- experts

struct ExpertsCase {
  int64_t N, C, F, E, k;
  bool clamped = false, bias = false;
  int64_t capacity = 0, sequences = 1;
};

struct Data {
  at::Tensor x, experts, weights, dy;
  ExpertWeights w;
};

// Experts by random scores; `lonely`: only the first k ever.
Data data_of(const ExpertsCase& c, bool lonely = false) {
  Data d;
  d.x = random_floats({c.N, c.C}, 1);
  d.experts = ref::route(lonely ? at::zeros({c.N, c.E}) : random_floats({c.N, c.E}, 2), {}, {.topk = c.k}).experts;
  d.weights = random_floats({c.N, c.k}, 3), d.dy = random_floats({c.N, c.C}, 4);
  d.w.gate_up = random_floats({c.E * 2 * c.F, c.C}, 5, 2 / std::sqrt(static_cast<double>(c.C)));
  d.w.down = random_floats({c.E * c.C, c.F}, 6, 1 / std::sqrt(static_cast<double>(c.F)));
  if (c.bias) d.w.gate_up_bias = random_floats({c.E * 2 * c.F}, 7), d.w.down_bias = random_floats({c.E * c.C}, 8);
  return d;
}

ExpertGate gate_of(const ExpertsCase& c) { return {.clamped = c.clamped, .limit = 1.0}; }

Tensors run(const ExpertsCase& c, const Data& d) {
  const ExpertRows rows = sort_by_expert(d.experts, c.E, c.capacity, c.sequences);
  const auto zeros = [](const at::Tensor& t) { return t.defined() ? at::zeros_like(t) : t; };
  const ExpertWeights gradients{zeros(d.w.gate_up), zeros(d.w.gate_up_bias), zeros(d.w.down), zeros(d.w.down_bias)};
  const auto out = experts_forward(d.x, d.weights, rows, d.w, gate_of(c), true);
  const auto back = experts_backward(d.dy, d.x, d.weights, rows, d.w, gate_of(c), out.gate_up, gradients);
  Tensors all{out.y, back.dx, back.dweights, gradients.gate_up, gradients.down};
  if (c.bias) all.push_back(gradients.gate_up_bias), all.push_back(gradients.down_bias);
  return all;
}

const std::vector<ExpertsCase> kCases = {
    {1, 16, 8, 4, 2},
    {1, 5, 3, 1, 1},
    {8, 24, 20, 6, 3, true, true},
    {9, 24, 20, 6, 3, true, true},
    {300, 33, 17, 5, 2, false, true},
    {300, 32, 16, 64, 4},
    {700, 48, 40, 3, 1, true, false},
    {400, 20, 12, 8, 3, false, true, 30, 4},
    {64, 16, 70, 4, 4},
};

TEST(Experts, EqualTheirTwin) {
  for (const auto& c : kCases) {
    for (bool lonely : {false, true}) {
      const Data d = data_of(c, lonely);
      const std::string name =
          fmt::format("N {} C {} F {} E {} k {}{}", c.N, c.C, c.F, c.E, c.k, lonely ? " lonely" : "");
      at::Tensor kept;
      if (c.capacity > 0) kept = ref::within_capacity(d.experts, c.E, c.capacity, c.sequences);
      auto twin = [&](const Tensors& in) {
        const ExpertWeights w{in[2], c.bias ? in[4] : at::Tensor(), in[3], c.bias ? in[5] : at::Tensor()};
        return Tensors{ref::experts(in[0], d.experts, in[1], kept, w, gate_of(c))};
      };
      Tensors inputs{d.x, d.weights, d.w.gate_up, d.w.down};
      if (c.bias) inputs.push_back(d.w.gate_up_bias), inputs.push_back(d.w.down_bias);
      Tensors wide;
      for (const auto& t : inputs) wide.push_back(t.to(at::kDouble));
      const Tensors got = run(c, d), gradients = oracle_gradients(twin, inputs, {d.dy});
      expect_close(got[0], twin(wide)[0], 3e-6, name);
      for (size_t i = 0; i < gradients.size(); ++i)
        expect_close(got[i + 1], gradients[i], 5e-6, name + " gradient " + std::to_string(i));
      // Without keeping anything the same bits come out.
      const ExpertRows rows = sort_by_expert(d.experts, c.E, c.capacity, c.sequences);
      EXPECT_TRUE(same_bits(experts_forward(d.x, d.weights, rows, d.w, gate_of(c), false).y, got[0])) << name;
      if (!c.clamped && c.N < 100)
        expect_finite_differences(twin, inputs, {d.dy}, {got.begin() + 1, got.end()}, 1e-5, name);
    }
  }
}

TEST(Experts, SameBitsEverywhere) {
  for (const auto& c : kCases) {
    const Data d = data_of(c);
    expect_same_bits_everywhere([&] { return run(c, d); }, fmt::format("N {} E {}", c.N, c.E));
  }
}

// What a token gets does not depend on the others, as long as there are more than eight or at most eight.
TEST(Experts, ATokenIsAloneWithItsExperts) {
  const ExpertsCase c{200, 64, 32, 8, 2};
  const Data d = data_of(c);
  const at::Tensor y = run(c, d)[0];
  for (int64_t n : {9, 40, 133}) {
    const ExpertRows rows = sort_by_expert(d.experts.narrow(0, 3, n), c.E);
    const auto part =
        experts_forward(d.x.narrow(0, 3, n), d.weights.narrow(0, 3, n).contiguous(), rows, d.w, {}, false);
    EXPECT_TRUE(same_bits(part.y, y.narrow(0, 3, n))) << n;
  }
  const auto few = experts_forward(d.x.narrow(0, 0, 8), d.weights.narrow(0, 0, 8),
                                   sort_by_expert(d.experts.narrow(0, 0, 8), c.E), d.w, {}, false);
  for (int64_t n = 0; n < 8; ++n) {
    const auto one = experts_forward(d.x.narrow(0, n, 1), d.weights.narrow(0, n, 1),
                                     sort_by_expert(d.experts.narrow(0, n, 1), c.E), d.w, {}, false);
    EXPECT_TRUE(same_bits(one.y, few.y.narrow(0, n, 1))) << n;
  }
}

TEST(Experts, CapacityKeepsTheFirstOfEachSequence) {
  const auto experts = at::tensor({0, 1, 0, 2, 0, 1, 1, 0, 1, 0, 1, 2}, at::kInt).view({6, 2});
  const ExpertRows rows = sort_by_expert(experts, 4, 2, 2);
  // Sequence 0: tokens 0 1 2; expert 0 is full at its third.
  EXPECT_EQ(rows.count, (std::vector<int64_t>{4, 4, 2, 0}));
  EXPECT_EQ(rows.place[4], -1);
  EXPECT_EQ(rows.place[10], -1);
  EXPECT_EQ(std::count(rows.place.begin(), rows.place.end(), -1), 2);
  const auto kept = ref::within_capacity(experts, 4, 2, 2).view({-1});
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(kept[i].item<bool>(), rows.place[i] >= 0) << i;
}

TEST(GroupedLinear, EqualsItsTwin) {
  for (bool bias : {false, true}) {
    const int64_t E = 6, in = 37, out = 29;
    const auto experts = random_ids(200, 0, 5, 3).view({100, 2});  // the last expert gets nothing
    const ExpertRows rows = sort_by_expert(experts, E);
    auto x = random_floats({rows.padded, in}, 1), dy = random_floats({rows.padded, out}, 2);
    for (int64_t r = 0; r < rows.padded; ++r)
      if (rows.pair[r] < 0) x[r].zero_(), dy[r].zero_();
    const auto weight = random_floats({E * out, in}, 3), b = bias ? random_floats({E * out}, 4) : at::Tensor();
    auto twin = [&](const Tensors& in) {
      return Tensors{ref::grouped_linear(in[0], in[1], bias ? in[2] : at::Tensor(), rows)};
    };
    Tensors inputs{x, weight};
    if (bias) inputs.push_back(b);
    const auto real = at::zeros({rows.padded, 1});
    for (int64_t r = 0; r < rows.padded; ++r) real[r] = rows.pair[r] >= 0 ? 1 : 0;
    expect_close(grouped_linear_forward(x, weight, b, rows) * real, twin({x, weight, b})[0], 2e-6, "forward");
    const auto gradients = oracle_gradients(twin, inputs, {dy});
    expect_close(grouped_linear_backward_input(dy, weight, rows), gradients[0], 2e-6, "input");
    const auto dweight = at::ones_like(weight), dbias = bias ? at::ones_like(b) : b;
    grouped_linear_backward_weight_(dweight, dbias, dy, x, rows);
    expect_close(dweight - 1, gradients[1], 5e-6, "weight");
    if (bias) expect_close(dbias - 1, gradients[2], 5e-6, "bias");
    expect_same_bits_everywhere(
        [&] {
          const auto dw = at::zeros_like(weight);
          grouped_linear_backward_weight_(dw, {}, dy, x, rows);
          return Tensors{grouped_linear_forward(x, weight, b, rows), grouped_linear_backward_input(dy, weight, rows),
                         dw};
        },
        "grouped linear");
  }
}

TEST(Experts, SayWhatDoesNotFit) {
  EXPECT_NE(message_of([&] {
              sort_by_expert(at::tensor({0, 4}, at::kInt).view({1, 2}), 4);
            }).find("found 4"),
            std::string::npos);
  const ExpertsCase c{10, 8, 4, 2, 1};
  const Data d = data_of(c);
  const ExpertRows rows = sort_by_expert(d.experts, c.E);
  EXPECT_NE(message_of([&] { experts_forward(d.x.narrow(0, 0, 9), d.weights, rows, d.w, {}, false); }).find("[10, 8]"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
