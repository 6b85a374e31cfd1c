// labels: quick
#include "models/kernels/logprobs.h"

#include <cstdlib>
#include <limits>

#include "models/kernels/aten/logprobs.h"
#include "models/kernels/ref/logprobs.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

// As the program runs: MKL's reproducible mode, asked for before the first product.
const bool kReproducible = setenv("MKL_CBWR", "AVX2,STRICT", 0) == 0;

struct Case {
  int64_t N, D, V;
  bool bias;
  double predicted;  // share of the rows
  LogprobsOptions options;
};

const Case kCases[] = {
    {1, 1, 1, false, 1, {}},
    {1, 8, 5, false, 1, {.entropy = true}},
    {8, 16, 37, true, 1, {.temperature = 0.7, .entropy = true}},
    {61, 24, 101, false, 1, {.temperature = 1.5}},
    {100, 24, 129, true, 0.6, {.entropy = true}},
    {64, 32, 300, false, 1, {.softcap = 3, .temperature = 0.9, .entropy = true}},
    {77, 32, 300, true, 0.5, {.softcap = 1.5, .temperature = 2, .entropy = true, .chunk_rows = 16}},
    {50, 16, 5003, false, 0.9, {.entropy = true, .chunk_rows = 24}},
    {24, 16, 4096, true, 1, {.chunk_rows = 8}},
    {9, 12, 2049, false, 0, {.entropy = true}},
};

struct Problem {
  at::Tensor hidden, weight, bias, targets, dlogprobs, dentropy;
};
Problem make(const Case& c) {
  Problem p;
  p.hidden = random_floats({c.N, c.D}, 1), p.weight = random_floats({c.V, c.D}, 2, 0.7);
  if (c.bias) p.bias = random_floats({c.V}, 3);
  p.targets = random_ids(c.N, 0, c.V, 4);
  const auto keep = random_ids(c.N, 0, 1000, 5) < c.predicted * 1000;
  p.targets = at::where(keep, p.targets, at::full_like(p.targets, -1));
  // A third of the rows have no gradient.
  p.dlogprobs = random_floats({c.N}, 6) * (random_ids(c.N, 0, 3, 7) > 0);
  if (c.options.entropy) p.dentropy = random_floats({c.N}, 8) * (p.dlogprobs != 0);
  return p;
}

std::string name_of(const Case& c) {
  return "N " + std::to_string(c.N) + " V " + std::to_string(c.V) + (c.bias ? " bias" : "") + " softcap " +
         std::to_string(c.options.softcap) + " temperature " + std::to_string(c.options.temperature);
}

at::Tensor wide(const at::Tensor& x) { return x.defined() ? x.to(at::kDouble) : x; }

TEST(Logprobs, EqualTheirTwin) {
  for (const Case& c : kCases) {
    const Problem p = make(c);
    auto dweight = at::ones({c.V, c.D}), dbias = c.bias ? at::ones({c.V}) : at::Tensor();
    const Logprobs out = linear_logprobs(p.hidden, p.weight, p.bias, p.targets, c.options);
    const at::Tensor dhidden = linear_logprobs_backward(p.hidden, p.weight, p.bias, p.targets, c.options, out,
                                                        p.dlogprobs, p.dentropy, dweight, dbias);
    const Logprobs expected = ref::linear_logprobs(wide(p.hidden), wide(p.weight), wide(p.bias), p.targets, c.options);
    expect_close(out.logprobs, expected.logprobs, 3e-6, name_of(c) + " logprobs");
    expect_close(out.lse, expected.lse, 3e-6, name_of(c) + " lse");
    ASSERT_EQ(out.entropy.defined(), c.options.entropy);
    if (c.options.entropy) expect_close(out.entropy, expected.entropy, 3e-6, name_of(c) + " entropy");

    auto twin = [&](const Tensors& in) {
      const Logprobs forward = ref::linear_logprobs(in[0], in[1], c.bias ? in[2] : at::Tensor(), p.targets, c.options);
      Tensors outputs{forward.logprobs};
      if (c.options.entropy) outputs.push_back(forward.entropy);
      return outputs;
    };
    Tensors inputs{p.hidden, p.weight}, gradients{dhidden, dweight - 1}, above{p.dlogprobs};
    if (c.bias) inputs.push_back(p.bias), gradients.push_back(dbias - 1);
    if (c.options.entropy) above.push_back(p.dentropy);
    const auto oracle = oracle_gradients(twin, inputs, above);
    // Relative to the largest. dweight - 1 has lost what adding to 1 rounds away.
    for (size_t i = 0; i < inputs.size(); ++i) {
      const double size = oracle[i].abs().max().item<double>(), lost = i > 0 ? 2e-7 : 0;
      expect_close(gradients[i] / (size + 1e-30), oracle[i] / (size + 1e-30), 8e-6 + lost / (size + 1e-30),
                   name_of(c) + " gradient " + std::to_string(i));
    }

    // Through LibTorch's operators, in chunks of their own.
    LogprobsOptions chunked = c.options;
    chunked.chunk_rows = 8;
    const Logprobs there = aten::linear_logprobs(p.hidden, p.weight, p.bias, p.targets, chunked);
    expect_close(there.logprobs, expected.logprobs, 3e-6, name_of(c) + " aten logprobs");
    if (c.options.entropy) expect_close(there.entropy, expected.entropy, 3e-6, name_of(c) + " aten entropy");
    auto dweight2 = at::ones({c.V, c.D}), dbias2 = c.bias ? at::ones({c.V}) : at::Tensor();
    const at::Tensor dhidden2 = aten::linear_logprobs_backward(p.hidden, p.weight, p.bias, p.targets, chunked,
                                                               p.dlogprobs, p.dentropy, dweight2, dbias2);
    const double size = oracle[0].abs().max().item<double>();
    expect_close(dhidden2 / (size + 1e-30), oracle[0] / (size + 1e-30), 8e-6, name_of(c) + " aten dhidden");
    expect_close(dweight2, dweight, 3e-5 * (1 + oracle[1].abs().max().item<double>()), name_of(c) + " aten dweight");
    if (c.bias) expect_close(dbias2, dbias, 3e-5 * (1 + oracle[2].abs().max().item<double>()), name_of(c));
  }
}

TEST(Logprobs, DoNotDependOnTheThreadsNorOnTheOtherRows) {
  const Case c{200, 24, 1001, true, 1, {.temperature = 0.8, .entropy = true, .chunk_rows = 16}};
  const Problem p = make(c);
  std::vector<at::Tensor> first;
  for (const int threads : {1, 2, 4}) {
    at::set_num_threads(threads);
    auto dweight = at::zeros({c.V, c.D}), dbias = at::zeros({c.V});
    const Logprobs out = linear_logprobs(p.hidden, p.weight, p.bias, p.targets, c.options);
    const at::Tensor dhidden = linear_logprobs_backward(p.hidden, p.weight, p.bias, p.targets, c.options, out,
                                                        p.dlogprobs, p.dentropy, dweight, dbias);
    const std::vector<at::Tensor> all{out.logprobs, out.entropy, dhidden, dweight, dbias};
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(at::equal(all[i], first[i])) << threads << " " << i;
  }
  const Logprobs some = linear_logprobs(p.hidden.narrow(0, 37, 40).contiguous(), p.weight, p.bias,
                                        p.targets.narrow(0, 37, 40).contiguous(), c.options);
  EXPECT_TRUE(at::equal(some.logprobs, first[0].narrow(0, 37, 40)));
}

TEST(Logprobs, ExtremeLogits) {
  // One logit far above the others, and logits that are minus infinity through the bias.
  const at::Tensor hidden = at::ones({8, 1}), weight = at::zeros({20, 1}), targets = at::zeros({8}, at::kInt);
  at::Tensor bias = at::full({20}, -std::numeric_limits<float>::infinity());
  bias[0] = 5.0f, bias[3] = 5.0f;
  const Logprobs out = linear_logprobs(hidden, weight, bias, targets, {.entropy = true});
  EXPECT_NEAR(out.logprobs[0].item<float>(), -std::log(2.0f), 1e-6);
  EXPECT_NEAR(out.entropy[0].item<float>(), std::log(2.0f), 1e-6);
  at::Tensor dweight = at::zeros({20, 1});
  const at::Tensor one = at::ones({8});
  linear_logprobs_backward(hidden, weight, bias, targets, {.entropy = true}, out, one, one, dweight, {});
  EXPECT_NEAR(dweight[0].item<float>(), 8 * 0.5, 1e-5);
  EXPECT_NEAR(dweight[3].item<float>(), -8 * 0.5, 1e-5);
  EXPECT_EQ(dweight[1].item<float>(), 0);
  bias[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(linear_logprobs(hidden, weight, bias, targets, {}).logprobs[0].item<float>()));
}

TEST(Logprobs, RefusesWhatMakesNoSense) {
  const at::Tensor hidden = at::ones({8, 4}), weight = at::ones({5, 4}), targets = at::zeros({8}, at::kInt);
  EXPECT_THROW(linear_logprobs(hidden, weight, {}, targets, {.temperature = 0}), std::invalid_argument);
  EXPECT_THROW(linear_logprobs(hidden, weight, {}, targets, {.chunk_rows = 3}), std::invalid_argument);
  EXPECT_THROW(linear_logprobs(hidden, weight, {}, at::full({8}, 5, at::kInt), {}), std::invalid_argument);
  EXPECT_THROW(linear_logprobs(hidden, at::ones({5, 3}), {}, targets, {}), std::invalid_argument);
  const Logprobs out = linear_logprobs(hidden, weight, {}, targets, {});
  EXPECT_THROW(linear_logprobs_backward(hidden, weight, {}, targets, {}, out, at::ones({8}), at::ones({8}), {}, {}),
               std::invalid_argument);
}

}  // namespace
}  // namespace cairn::kernels
