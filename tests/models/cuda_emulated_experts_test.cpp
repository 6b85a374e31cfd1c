// labels: quick
// The CUDA kernels of experts and of their router, run on a CPU block by block, against their twins.
#include "tests/models/cuda_emulator.h"  // first: the .cu files need it

#include "models/kernels/cuda/experts.cu"
#include "models/kernels/cuda/experts_sort.cu"
#include "models/kernels/cuda/router.cu"
#include "models/kernels/ref/grouped_linear.h"
#include "models/kernels/ref/router.h"
#include "tests/models/emulated_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

// ---- sort

struct Sorted {
  at::Tensor first, pair, place, tiles;
};

Sorted sort_on_gpu(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences) {
  cuda::ExpertSort job;
  job.pairs = experts.numel(), job.experts = num_experts, job.capacity = capacity;
  job.sequence_pairs = job.pairs / sequences;
  const auto ints = [](at::IntArrayRef shape) { return at::full(shape, -7, at::kInt); };
  Sorted s{ints({num_experts + 1}), ints({job.pairs}), ints({job.pairs}),
           ints({cuda::expert_tiles(job.pairs, num_experts), 3})};
  const at::Tensor start = ints({job.pieces(), num_experts}), room = ints({job.pieces(), num_experts});
  job.expert = experts.const_data_ptr<int32_t>();
  job.first = s.first.mutable_data_ptr<int32_t>();
  job.pair = s.pair.mutable_data_ptr<int32_t>(), job.place = s.place.mutable_data_ptr<int32_t>();
  job.tiles = static_cast<cuda::ExpertTile*>(s.tiles.mutable_data_ptr());
  job.start = start.mutable_data_ptr<int32_t>(), job.room = room.mutable_data_ptr<int32_t>();
  cuda::sort_by_expert(job, nullptr);
  return s;
}

struct SortCase {
  int64_t N, k, E, capacity, sequences;
};

TEST(EmulatedExpertSort, EqualsTheCpusSort) {
  for (const SortCase& c : {SortCase{1, 1, 1, 0, 1},
                            {300, 2, 5, 0, 1},
                            {300, 2, 5, 0, 3},
                            {512, 3, 40, 0, 2},
                            {400, 3, 8, 30, 4},
                            {96, 4, 4, 1, 3},
                            {700, 1, 1200, 2, 1}}) {
    const std::string name = fmt::format("N {} k {} E {} capacity {}", c.N, c.k, c.E, c.capacity);
    // Half of the experts get nothing.
    const auto experts = random_ids(c.N * c.k, 0, (c.E + 1) / 2, 3).view({c.N, c.k});
    const Tensors got = in_both_orders(
        [&] {
          const Sorted s = sort_on_gpu(experts, c.E, c.capacity, c.sequences);
          return Tensors{s.first, s.pair, s.place, s.tiles};
        },
        name);
    const ExpertRows rows = sort_by_expert(experts, c.E, c.capacity, c.sequences);
    const auto first = got[0].accessor<int32_t, 1>(), pair = got[1].accessor<int32_t, 1>(),
               place = got[2].accessor<int32_t, 1>();
    const auto tiles = got[3].accessor<int32_t, 2>();
    for (int64_t e = 0; e < c.E; ++e) EXPECT_EQ(first[e + 1] - first[e], rows.count[e]) << name;
    for (int64_t i = 0; i < c.N * c.k; ++i) {
      if (rows.place[i] < 0) {
        EXPECT_EQ(place[i], -1) << name;
        continue;
      }
      const int64_t e = experts.view({-1})[i].item<int>();
      EXPECT_EQ(place[i] - first[e], rows.place[i] - rows.first[e]) << name << " pair " << i;
      EXPECT_EQ(pair[place[i]], i) << name;
    }
    // The tiles cover every row once and the others are empty.
    int64_t row = 0;
    for (int64_t t = 0; t < got[3].size(0); ++t) {
      if (tiles[t][2] == 0) continue;
      EXPECT_EQ(tiles[t][1], row) << name;
      EXPECT_LE(tiles[t][1] + tiles[t][2], first[tiles[t][0] + 1]) << name;
      EXPECT_GE(tiles[t][1], first[tiles[t][0]]) << name;
      row += tiles[t][2];
    }
    EXPECT_EQ(row, first[c.E]) << name;
  }
}

// ---- experts

struct ExpertsCase {
  int64_t N, C, F, E, k;
  bool clamped = false, bias = false;
  int64_t capacity = 0, sequences = 1;
  Activation activation = Activation::silu;
};

// A full tile and more rows, ragged ends everywhere; most experts empty; one expert; all experts.
const std::vector<ExpertsCase> kCases = {
    {1, 5, 3, 1, 1},
    {3, 16, 8, 64, 2},
    {9, 24, 20, 6, 3, true, true},
    {90, 33, 17, 3, 2, false, true},
    {30, 130, 66, 2, 1, false, true, 0, 1, Activation::gelu_tanh},
    {80, 20, 12, 8, 3, false, true, 5, 4},
    {64, 16, 70, 4, 4, true},
};

cuda::Type type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16;
}
const void* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
float* floats_of(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr<float>() : nullptr; }

struct Data {
  at::Tensor x, experts, weights, dy;
  ExpertWeights w;
};

Data data_of(const ExpertsCase& c, bool lonely, at::ScalarType type, at::ScalarType weight_type) {
  Data d;
  const auto random = [&](at::IntArrayRef shape, uint64_t seed, double scale = 1.0) {
    return random_floats(shape, seed, scale).to(weight_type);
  };
  d.x = random_floats({c.N, c.C}, 1).to(type), d.dy = random_floats({c.N, c.C}, 4).to(type);
  d.experts = ref::route(lonely ? at::zeros({c.N, c.E}) : random_floats({c.N, c.E}, 2), {}, {.topk = c.k}).experts;
  d.weights = random_floats({c.N, c.k}, 3);
  d.w.gate_up = random({c.E * 2 * c.F, c.C}, 5, 2 / std::sqrt(static_cast<double>(c.C)));
  d.w.down = random({c.E * c.C, c.F}, 6, 1 / std::sqrt(static_cast<double>(c.F)));
  if (c.bias) d.w.gate_up_bias = random({c.E * 2 * c.F}, 7), d.w.down_bias = random({c.E * c.C}, 8);
  return d;
}

ExpertGate gate_of(const ExpertsCase& c) { return {.activation = c.activation, .clamped = c.clamped, .limit = 1.0}; }

// y, dx, dweights, and the gradients of gate_up, down and the biases, which begin at 1.
Tensors run(const ExpertsCase& c, const Data& d, bool frozen = false) {
  const Sorted sorted = sort_on_gpu(d.experts, c.E, c.capacity, c.sequences);
  cuda::ExpertsCall call;
  call.type = type_of(d.x), call.weight_type = type_of(d.w.down);
  call.tokens = c.N, call.slots = c.k, call.experts = c.E, call.hidden = c.C, call.inner = c.F;
  call.expert = d.experts.const_data_ptr<int32_t>(), call.first = sorted.first.const_data_ptr<int32_t>();
  call.pair = sorted.pair.const_data_ptr<int32_t>(), call.place = sorted.place.const_data_ptr<int32_t>();
  call.tiles = static_cast<const cuda::ExpertTile*>(sorted.tiles.const_data_ptr());
  call.gate_up = data_of(d.w.gate_up), call.gate_up_bias = data_of(d.w.gate_up_bias);
  call.down = data_of(d.w.down), call.down_bias = data_of(d.w.down_bias);
  const ExpertGate gate = gate_of(c);
  call.kind = gate.clamped ? -1 : static_cast<int>(gate.activation);
  call.alpha = static_cast<float>(gate.alpha), call.limit = static_cast<float>(gate.limit);
  call.x = data_of(d.x), call.weights = d.weights.const_data_ptr<float>();
  const int64_t P = c.N * c.k;
  const auto nothing = [&](at::IntArrayRef shape, at::ScalarType type) { return at::full(shape, NAN, type); };
  const at::ScalarType type = d.x.scalar_type();
  const at::Tensor gates = nothing({P, 2 * c.F}, type), h = nothing({P, c.F}, type), out = nothing({P, c.C}, type),
                   y = nothing({c.N, c.C}, type);
  call.gates = gates.mutable_data_ptr();
  cuda::experts_forward({call, h.mutable_data_ptr(), out.mutable_data_ptr(), y.mutable_data_ptr()}, nullptr);

  cuda::ExpertsBackward job;
  const auto ones = [&](const at::Tensor& w) {
    return w.defined() && !frozen ? at::ones(w.sizes(), at::kFloat) : at::Tensor();
  };
  const ExpertWeights gradients{ones(d.w.gate_up), ones(d.w.gate_up_bias), ones(d.w.down), ones(d.w.down_bias)};
  const at::Tensor hidden = nothing({P, c.F}, at::kFloat), dinputs = nothing({P, c.C}, type),
                   dx = nothing({c.N, c.C}, type), dweights = at::zeros({c.N, c.k});
  job.call = call, job.dy = data_of(d.dy);
  job.hidden = hidden.mutable_data_ptr<float>(), job.dinputs = dinputs.mutable_data_ptr();
  job.dx = dx.mutable_data_ptr(), job.dweights = dweights.mutable_data_ptr<float>();
  job.dgate_up = floats_of(gradients.gate_up), job.dgate_up_bias = floats_of(gradients.gate_up_bias);
  job.ddown = floats_of(gradients.down), job.ddown_bias = floats_of(gradients.down_bias);
  cuda::experts_backward(job, nullptr);
  Tensors all{y, dx, dweights};
  if (frozen) return all;
  all.push_back(gradients.gate_up), all.push_back(gradients.down);
  if (c.bias) all.push_back(gradients.gate_up_bias), all.push_back(gradients.down_bias);
  return all;
}

TEST(EmulatedExperts, EqualTheirTwin) {
  for (const auto& c : kCases)
    for (bool lonely : {false, true}) {
      if (lonely && !c.bias) continue;  // the first k experts alone, one expert among them
      const Data d = data_of(c, lonely, at::kFloat, at::kFloat);
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
      const Tensors got = in_both_orders([&] { return run(c, d); }, name);
      const Tensors gradients = oracle_gradients(twin, inputs, {d.dy});
      expect_close(got[0], twin(wide)[0], 3e-6, name);
      for (size_t i = 0; i < gradients.size(); ++i)
        expect_close(got[i + 1] - (i < 2 ? 0 : 1), gradients[i], 5e-6, name + " gradient " + std::to_string(i));
      const Tensors frozen = c.N < 10 ? run(c, d, true) : Tensors();
      for (size_t i = 0; i < frozen.size(); ++i) EXPECT_TRUE(same_bits(frozen[i], got[i])) << name << " frozen";
    }
}

// bfloat16 rows, and rows and weights of different types: what the twin makes of the rounded numbers in double.
TEST(EmulatedExperts, TakeBothTypes) {
  const ExpertsCase c{70, 40, 24, 4, 2, false, true};
  for (auto type : {at::kFloat, at::kBFloat16})
    for (auto weight_type : {at::kFloat, at::kBFloat16}) {
      if (type == at::kFloat && weight_type == at::kFloat) continue;
      const Data d = data_of(c, false, type, weight_type);
      const std::string name = fmt::format("{} weights {}", c10::toString(type), c10::toString(weight_type));
      auto twin = [&](const Tensors& in) {
        return Tensors{ref::experts(in[0], d.experts, in[1], {}, {in[2], in[4], in[3], in[5]}, gate_of(c))};
      };
      Tensors inputs{d.x, d.weights, d.w.gate_up, d.w.down, d.w.gate_up_bias, d.w.down_bias}, wide;
      for (auto& t : inputs)  // a wider weight is rounded to the rows' type
        if (&t != &inputs[1]) t = t.to(type);
      for (const auto& t : inputs) wide.push_back(t.to(at::kDouble));
      const Tensors got = run(c, d), gradients = oracle_gradients(twin, inputs, {d.dy});
      const double tolerance = type == at::kFloat ? 5e-6 : 1e-2;
      EXPECT_EQ(got[0].scalar_type(), type);
      expect_close(got[0], twin(wide)[0], tolerance, name);
      for (size_t i = 0; i < gradients.size(); ++i)
        expect_close(got[i + 1].to(at::kFloat) - (i < 2 ? 0 : 1), gradients[i], tolerance,
                     name + " gradient " + std::to_string(i));
    }
}

// ---- router

using Scoring = RouterOptions::Scoring;
struct RouterCase {
  int64_t N, E;
  RouterOptions options;
  bool bias;
};

const std::vector<RouterCase> kRouterCases = {
    {1, 1, {.topk = 1}, false},
    {7, 5, {.topk = 5, .normalise = true}, false},
    {13, 64, {.topk = 40, .scale = 1.5}, false},
    {15, 33, {.scoring = Scoring::sigmoid, .topk = 6, .normalise = true, .scale = 2.5}, true},
    {15, 32, {.scoring = Scoring::sigmoid, .topk = 4, .scale = 0.5, .groups = 8, .topk_groups = 3}, true},
    {10, 24, {.scoring = Scoring::sigmoid, .topk = 6, .normalise = true, .groups = 4, .topk_groups = 2}, true},
    {10, 80, {.topk = 3, .normalise = true, .groups = 40, .topk_groups = 2}, false},
    {10, 32, {.scoring = Scoring::softmax_topk, .topk = 4}, false},
    {10, 20, {.scoring = Scoring::softmax_topk, .topk = 3, .scale = 2}, true},
};

cuda::Route job_of(const at::Tensor& logits, const RouterOptions& options, const Routing& r) {
  cuda::Route job;
  job.rows = logits.size(0), job.experts = logits.size(1), job.topk = options.topk;
  job.groups = options.groups, job.topk_groups = options.topk_groups;
  job.scoring = static_cast<int>(options.scoring), job.normalise = options.normalise;
  job.scale = static_cast<float>(options.scale);
  job.logits = logits.const_data_ptr<float>();
  job.chosen = r.experts.mutable_data_ptr<int32_t>(), job.weights = r.weights.mutable_data_ptr<float>();
  job.scores = r.scores.mutable_data_ptr<float>(), job.lse = r.lse.mutable_data_ptr<float>();
  return job;
}

Routing route_on_gpu(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  const int64_t N = logits.size(0), E = logits.size(1), k = options.topk;
  const Routing r{at::full({N, k}, -7, at::kInt), at::full({N, k}, NAN), at::full({N, E}, NAN), at::full({N}, NAN), {}};
  cuda::Route job = job_of(logits, options, r);
  job.bias = floats_of(bias);
  cuda::route(job, nullptr);
  return r;
}

at::Tensor route_backward_on_gpu(const at::Tensor& dweights, const at::Tensor& logits, const Routing& r,
                                 const RouterOptions& options, const RouterAux& aux) {
  const at::Tensor dlogits = at::full_like(logits, NAN);
  cuda::Route job = job_of(logits, options, r);
  job.dweights = dweights.const_data_ptr<float>(), job.dlogits = dlogits.mutable_data_ptr<float>();
  job.balance = floats_of(aux.balance), job.z = static_cast<float>(aux.z);
  if (aux.balance.defined()) job.sequence_rows = logits.size(0) / aux.balance.size(0);
  cuda::route_backward(job, nullptr);
  return dlogits;
}

TEST(EmulatedRouter, EqualsItsTwin) {
  for (const auto& c : kRouterCases) {
    const std::string name = fmt::format("{} x {}, scoring {}", c.N, c.E, static_cast<int>(c.options.scoring));
    const auto logits = random_floats({c.N, c.E}, 1, 2), dweights = random_floats({c.N, c.options.topk}, 2);
    const auto bias = c.bias ? random_floats({c.E}, 3, 0.3) : at::Tensor();
    const auto wide_bias = bias.defined() ? bias.to(at::kDouble) : bias;
    const Routing wide = ref::route(logits.to(at::kDouble), wide_bias, c.options);
    Routing got;
    in_both_orders(
        [&] {
          got = route_on_gpu(logits, bias, c.options);
          return Tensors{got.experts, got.weights, got.scores, got.lse};
        },
        name);
    ASSERT_TRUE(at::equal(got.experts, wide.experts)) << name;
    expect_close(got.weights, wide.weights, 1e-6, name + " weights");
    expect_close(got.scores, wide.scores, 1e-6, name + " scores");
    expect_close(got.lse, wide.lse, 1e-6, name + " lse");
    for (int kind = 0; kind < 4; ++kind) {
      RouterAux aux;
      if (kind & 1) aux.balance = random_floats({c.N % 5 == 0 ? 5 : 1, c.E}, 4);
      if (kind & 2) aux.z = 0.3;
      auto f = [&](const Tensors& in) {
        const Routing r = ref::route(in[0], wide_bias, c.options);
        const at::Tensor loss = ref::router_aux_loss(r, c.options, aux);
        return Tensors{r.weights, loss.defined() ? loss : in[0].sum() * 0};
      };
      const Tensors gradient = in_both_orders(
          [&] { return Tensors{route_backward_on_gpu(dweights, logits, got, c.options, aux)}; }, name + " backward");
      expect_close(gradient[0], oracle_gradients(f, {logits}, {dweights, at::ones({})})[0], 2e-6, name + " backward");
    }
  }
}

TEST(EmulatedRouter, TiesGoToTheLowerExpert) {
  for (const auto& c : kRouterCases) {
    const Routing got = route_on_gpu(at::zeros({3, c.E}), {}, c.options);
    for (int64_t j = 0; j < c.options.topk; ++j) EXPECT_EQ(got.experts[1][j].item<int>(), j) << c.E;
  }
  const auto logits = at::tensor({1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f, 0.0f, -0.0f}).view({1, 8});
  for (auto scoring : {Scoring::softmax, Scoring::sigmoid, Scoring::softmax_topk}) {
    const auto expected = at::tensor({1, 3, 5, 0, 2, 4, 6}, at::kInt).view({1, 7});
    EXPECT_TRUE(at::equal(route_on_gpu(logits, {}, {.scoring = scoring, .topk = 7}).experts, expected));
  }
  // Two groups of two values each: groups 1 and 2 are equal.
  const auto grouped = at::tensor({0.0f, 1.0f, 3.0f, 2.0f, 2.0f, 3.0f}).view({1, 6});
  const RouterOptions options{.scoring = Scoring::softmax_topk, .topk = 2, .groups = 3, .topk_groups = 1};
  EXPECT_TRUE(at::equal(route_on_gpu(grouped, {}, options).experts, at::tensor({2, 3}, at::kInt).view({1, 2})));
}

TEST(EmulatedRouter, SurvivesWhatIsNotANumber) {
  auto logits = random_floats({2, 6}, 1);
  logits[0].fill_(std::numeric_limits<float>::quiet_NaN());
  for (const RouterOptions& options :
       {RouterOptions{.topk = 3},
        RouterOptions{.scoring = Scoring::sigmoid, .topk = 3, .groups = 3, .topk_groups = 2}}) {
    const Routing got = route_on_gpu(logits, {}, options);
    EXPECT_GE(got.experts.min().item<int>(), 0);
    EXPECT_LT(got.experts.max().item<int>(), 6);
    EXPECT_TRUE(got.weights[0].isnan().all().item<bool>());
    EXPECT_FALSE(got.weights[1].isnan().any().item<bool>());
  }
}

TEST(EmulatedRouter, RefusesRowsThatDoNotFit) {
  const auto logits = at::zeros({1, 5000});
  EXPECT_NE(message_of([&] { route_on_gpu(logits, {}, {.topk = 1}); }).find("5000 experts"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
