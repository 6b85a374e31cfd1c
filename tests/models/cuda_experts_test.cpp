// labels: quick
#include "models/kernels/ref/grouped_linear.h"
#include "models/kernels/ref/router.h"
#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;
using Scoring = RouterOptions::Scoring;

class CudaExperts : public CudaTest {};

struct Case {
  int64_t N, C, F, E, k;
  bool clamped = false, bias = false;
  int64_t capacity = 0, sequences = 1;
};
const Case kCases[] = {
    {1, 5, 3, 1, 1},
    {9, 24, 20, 6, 3, true, true},
    {3000, 256, 192, 64, 8},
    {700, 130, 66, 3, 1, true},
    {400, 20, 12, 8, 3, false, true, 30, 4},
    {64, 16, 70, 4, 4},
};

Tensors run(const Case& c, const Tensors& in, const at::Tensor& experts, const ExpertGate& gate, const at::Tensor& dy) {
  const auto zeros = [](const at::Tensor& t) {
    return t.defined() ? at::zeros_like(t, t.options().dtype(at::kFloat)) : t;
  };
  const auto at_or_nothing = [&](size_t i) { return c.bias ? on_gpu(in[i]) : at::Tensor(); };
  const ExpertWeights w{on_gpu(in[2]), at_or_nothing(4), on_gpu(in[3]), at_or_nothing(5)};
  const ExpertWeights gradients{zeros(w.gate_up), zeros(w.gate_up_bias), zeros(w.down), zeros(w.down_bias)};
  const at::Tensor x = on_gpu(in[0]), weights = on_gpu(in[1]);
  const ExpertRows rows = sort_by_expert(on_gpu(experts), c.E, c.capacity, c.sequences);
  const auto out = experts_forward(x, weights, rows, w, gate, true);
  EXPECT_TRUE(same_bits(experts_forward(x, weights, rows, w, gate, false).y.cpu(), out.y.cpu()));
  const auto back = experts_backward(on_gpu(dy), x, weights, rows, w, gate, out.gate_up, gradients);
  Tensors all{out.y.cpu(), back.dx.cpu(), back.dweights.cpu(), gradients.gate_up.cpu(), gradients.down.cpu()};
  if (c.bias) all.push_back(gradients.gate_up_bias.cpu()), all.push_back(gradients.down_bias.cpu());
  return all;
}

TEST_F(CudaExperts, EqualTheTwinInDouble) {
  for (const Case& c : kCases)
    for (auto type : {at::kFloat, at::kBFloat16}) {
      const std::string name = fmt::format("N {} C {} F {} E {} k {} {}", c.N, c.C, c.F, c.E, c.k, c10::toString(type));
      const auto random = [&](at::IntArrayRef shape, uint64_t seed, double scale = 1.0) {
        return random_floats(shape, seed, scale).to(type);
      };
      const at::Tensor experts = ref::route(random_floats({c.N, c.E}, 2), {}, {.topk = c.k}).experts,
                       dy = random({c.N, c.C}, 4);
      Tensors inputs{random({c.N, c.C}, 1), random_floats({c.N, c.k}, 3),
                     random({c.E * 2 * c.F, c.C}, 5, 2 / std::sqrt(static_cast<double>(c.C))),
                     random({c.E * c.C, c.F}, 6, 1 / std::sqrt(static_cast<double>(c.F)))};
      if (c.bias) inputs.push_back(random({c.E * 2 * c.F}, 7)), inputs.push_back(random({c.E * c.C}, 8));
      const ExpertGate gate{.clamped = c.clamped, .limit = 1.0};
      at::Tensor kept;
      if (c.capacity > 0) kept = ref::within_capacity(experts, c.E, c.capacity, c.sequences);
      auto twin = [&](const Tensors& in) {
        const ExpertWeights w{in[2], c.bias ? in[4] : at::Tensor(), in[3], c.bias ? in[5] : at::Tensor()};
        return Tensors{ref::experts(in[0], experts, in[1], kept, w, gate)};
      };
      Tensors wide;
      for (const auto& t : inputs) wide.push_back(t.to(at::kDouble));
      const Tensors got = run(c, inputs, experts, gate, dy), gradients = oracle_gradients(twin, inputs, {dy});
      const double bound = type == at::kFloat ? 5e-6 : 1.5e-2;
      expect_close(got[0], twin(wide)[0], bound, name);
      for (size_t i = 0; i < gradients.size(); ++i)
        expect_close(got[i + 1], gradients[i], bound, name + " gradient " + std::to_string(i));
      const Tensors again = run(c, inputs, experts, gate, dy);
      for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], again[i])) << name << ", output " << i;
    }
}

TEST_F(CudaExperts, TheRouterEqualsItsTwin) {
  for (const auto& options :
       {RouterOptions{.topk = 8, .normalise = true},
        {.scoring = Scoring::sigmoid, .topk = 8, .normalise = true, .scale = 2.5, .groups = 8, .topk_groups = 4},
        {.scoring = Scoring::softmax_topk, .topk = 4}}) {
    const int64_t N = 1000, E = 256;
    const std::string name = fmt::format("scoring {}", static_cast<int>(options.scoring));
    const auto logits = random_floats({N, E}, 1, 2), bias = random_floats({E}, 3, 0.3),
               dweights = random_floats({N, options.topk}, 2);
    const Routing got = route(on_gpu(logits), on_gpu(bias), options);
    const Routing wide = ref::route(logits.to(at::kDouble), bias.to(at::kDouble), options);
    ASSERT_TRUE(at::equal(got.experts.cpu(), wide.experts)) << name;
    expect_close(got.weights.cpu(), wide.weights, 1e-6, name + " weights");
    expect_close(got.lse.cpu(), wide.lse, 1e-6, name + " lse");
    const RouterAux aux{random_floats({5, E}, 4), 0.3};
    auto f = [&](const Tensors& in) {
      const Routing r = ref::route(in[0], bias.to(at::kDouble), options);
      return Tensors{r.weights, ref::router_aux_loss(r, options, aux)};
    };
    const auto gradient = route_backward(on_gpu(dweights), on_gpu(logits), got, options, {on_gpu(aux.balance), aux.z});
    expect_close(gradient.cpu(), oracle_gradients(f, {logits}, {dweights, at::ones({})})[0], 2e-6, name + " backward");
    const Routing ties = route(on_gpu(at::zeros({3, E})), {}, options);
    for (int64_t j = 0; j < options.topk; ++j) EXPECT_EQ(ties.experts.cpu()[1][j].item<int>(), j) << name;
  }
}

TEST_F(CudaExperts, RefuseWhatDoesNotFit) {
  const at::Tensor experts = on_gpu(at::zeros({4, 2}, at::kInt)), x = on_gpu(at::zeros({4, 8}));
  EXPECT_NE(message_of([&] { sort_by_expert(experts, 2, 1, 3); }).find("3 sequences"), std::string::npos);
  const ExpertWeights w{on_gpu(at::zeros({2 * 2 * 4, 8})), {}, on_gpu(at::zeros({2 * 8, 4})), {}};
  const ExpertRows rows = sort_by_expert(experts, 2);
  EXPECT_NE(message_of([&] {
              experts_forward(x, on_gpu(at::zeros({4, 3})), rows, w, {}, false);
            }).find("weights"),
            std::string::npos);
  EXPECT_NE(message_of([&] { route(on_gpu(at::zeros({1, 5000})), {}, {}); }).find("5000 experts"), std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
