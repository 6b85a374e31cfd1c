// labels: quick
#include "models/kernels/norm.h"

#include "models/kernels/ref/norm.h"
#include "tests/models/kernel_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

struct Case {
  std::vector<int64_t> shape;
  bool residual, dsum;
  double offset;
};

const Case kCases[] = {
    {{1, 1}, false, false, 0},   {{1, 16}, true, true, 0},        {{7, 17}, true, false, 1},
    {{33, 256}, true, true, 1},  {{200, 96}, false, true, 0},     {{2048, 64}, true, true, 0},
    {{5, 3, 24}, true, true, 0}, {{300, 4, 40}, false, false, 1}, {{70, 1000}, true, false, 0},
};

std::string name_of(const Case& c) {
  std::string name;
  for (auto n : c.shape) name += std::to_string(n) + " ";
  return name + (c.residual ? "residual " : "") + (c.dsum ? "dsum " : "") + "offset " + std::to_string(c.offset);
}

at::Tensor maybe(bool wanted, const at::Tensor& x) { return wanted ? x : at::Tensor(); }

TEST(RmsNorm, EqualsItsTwin) {
  const double eps = 1e-5;
  for (const Case& c : kCases) {
    const int64_t D = c.shape.back();
    const auto x = random_floats(c.shape, 1), residual = random_floats(c.shape, 2), weight = random_floats({D}, 3);
    const auto dy = random_floats(c.shape, 4), dsum = random_floats(c.shape, 5);
    const auto out = rms_norm_forward(x, maybe(c.residual, residual), weight, eps, c.offset);
    const auto sum = c.residual ? x + residual : x;
    EXPECT_TRUE(same_bits(out.sum, sum)) << name_of(c);
    EXPECT_EQ(out.sum.is_same(x), !c.residual);
    expect_close(out.y, ref::rms_norm(sum.to(at::kDouble), weight, eps, c.offset), 1e-6, name_of(c) + " y");

    auto dweight = at::ones({D});
    const auto ds = rms_norm_backward(dy, maybe(c.dsum, dsum), out.sum, weight, out.rstd, c.offset, dweight);
    auto twin = [&](const Tensors& in) { return Tensors{ref::rms_norm(in[0], in[1], eps, c.offset)}; };
    auto oracle = oracle_gradients(twin, {sum, weight}, {dy});
    if (c.dsum) oracle[0] = oracle[0] + dsum;
    expect_close(ds, oracle[0], 2e-6, name_of(c) + " ds");
    expect_close(dweight - 1, oracle[1], 2e-6, name_of(c) + " dweight");
    expect_finite_differences(twin, {sum, weight}, {dy}, {c.dsum ? ds - dsum : ds, dweight - 1}, 1e-5, name_of(c));

    // A frozen weight changes nothing else; the result may overwrite dy.
    auto in_place = dy.clone();
    rms_norm_backward(in_place, maybe(c.dsum, dsum), out.sum, weight, out.rstd, c.offset, {}, in_place);
    EXPECT_TRUE(same_bits(in_place, ds)) << name_of(c);
  }
}

TEST(LayerNorm, EqualsItsTwin) {
  const double eps = 1e-5;
  for (const Case& c : kCases) {
    const int64_t D = c.shape.back();
    if (D == 1) continue;  // the gradient of a constant
    const bool with_bias = c.offset == 0;
    const auto x = random_floats(c.shape, 1) + 3, residual = random_floats(c.shape, 2), weight = random_floats({D}, 3);
    const auto bias = maybe(with_bias, random_floats({D}, 6));
    const auto dy = random_floats(c.shape, 4), dsum = random_floats(c.shape, 5);
    const auto out = layer_norm_forward(x, maybe(c.residual, residual), weight, bias, eps);
    const auto sum = c.residual ? x + residual : x;
    EXPECT_TRUE(same_bits(out.sum, sum)) << name_of(c);
    expect_close(out.y, ref::layer_norm(sum.to(at::kDouble), weight, bias, eps), 2e-6, name_of(c) + " y");

    auto dweight = at::ones({D}), dbias = maybe(with_bias, at::ones({D}));
    const auto ds = layer_norm_backward(dy, maybe(c.dsum, dsum), out.sum, weight, out.mean, out.rstd, dweight, dbias);
    auto twin = [&](const Tensors& in) {
      return Tensors{ref::layer_norm(in[0], in[1], with_bias ? in[2] : at::Tensor(), eps)};
    };
    Tensors inputs{sum, weight};
    if (with_bias) inputs.push_back(bias);
    auto oracle = oracle_gradients(twin, inputs, {dy});
    if (c.dsum) oracle[0] = oracle[0] + dsum;
    expect_close(ds, oracle[0], 4e-6, name_of(c) + " ds");
    expect_close(dweight - 1, oracle[1], 4e-6, name_of(c) + " dweight");
    Tensors gradients{c.dsum ? ds - dsum : ds, dweight - 1};
    if (with_bias) {
      expect_close(dbias - 1, oracle[2], 2e-6, name_of(c) + " dbias");
      gradients.push_back(dbias - 1);
    }
    expect_finite_differences(twin, inputs, {dy}, gradients, 1e-5, name_of(c));
    EXPECT_TRUE(
        same_bits(layer_norm_backward(dy, maybe(c.dsum, dsum), out.sum, weight, out.mean, out.rstd, {}, {}), ds));
    auto only_bias = at::ones({D});
    layer_norm_backward(dy, {}, out.sum, weight, out.mean, out.rstd, {}, only_bias);
    EXPECT_TRUE(!with_bias || same_bits(only_bias, dbias));
  }
}

// q of a fused product [N, (H + 2K) * D], normalised head by head without a copy, and its gradient written back in
// place.
TEST(RmsNorm, TakesViewsOfAFusedProduct) {
  const int64_t N = 130, H = 3, K = 2, D = 24;
  const auto fused = random_floats({N, (H + 2 * K) * D}, 1), dfused = random_floats({N, (H + 2 * K) * D}, 2);
  const auto weight = random_floats({D}, 3);
  auto heads = [&](const at::Tensor& x, int64_t first, int64_t count) {
    return x.view({N, H + 2 * K, D}).narrow(1, first, count);
  };
  for (auto [first, count] : {std::pair<int64_t, int64_t>{0, H}, {H, K}}) {
    const auto view = heads(fused, first, count), dview = heads(dfused, first, count);
    const auto out = rms_norm_forward(view, {}, weight, 1e-6, 0),
               plain = rms_norm_forward(view.contiguous(), {}, weight, 1e-6, 0);
    EXPECT_TRUE(same_bits(out.y, plain.y));
    EXPECT_TRUE(out.y.is_contiguous());
    auto dweight = at::zeros({D}), dweight_plain = at::zeros({D});
    const auto expected = rms_norm_backward(dview.contiguous(), {}, plain.sum, weight, plain.rstd, 0, dweight_plain);
    const auto untouched = heads(dfused, H + K, K).clone();
    rms_norm_backward(dview, {}, out.sum, weight, out.rstd, 0, dweight, dview);
    EXPECT_TRUE(same_bits(dview, expected));
    EXPECT_TRUE(same_bits(dweight, dweight_plain));
    EXPECT_TRUE(same_bits(heads(dfused, H + K, K), untouched));
  }
}

TEST(Norm, SameBitsEverywhere) {
  for (int64_t D : {24, 96, 257}) {
    const auto x = random_floats({3000, D}, 1), residual = random_floats({3000, D}, 2), weight = random_floats({D}, 3);
    const auto bias = random_floats({D}, 6), dy = random_floats({3000, D}, 4), dsum = random_floats({3000, D}, 5);
    expect_same_bits_everywhere(
        [&] {
          const auto rms = rms_norm_forward(x, residual, weight, 1e-6, 1);
          const auto layer = layer_norm_forward(x, residual, weight, bias, 1e-6);
          auto dw = at::zeros({D}), dw2 = at::zeros({D}), db = at::zeros({D});
          const auto ds = rms_norm_backward(dy, dsum, rms.sum, weight, rms.rstd, 1, dw);
          const auto ds2 = layer_norm_backward(dy, dsum, layer.sum, weight, layer.mean, layer.rstd, dw2, db);
          return Tensors{rms.sum, rms.y, rms.rstd, ds, dw, layer.y, layer.mean, layer.rstd, ds2, dw2, db};
        },
        "norm, D = " + std::to_string(D));
  }
}

// A row's result does not depend on the rows beside it.
TEST(Norm, RowsAreIndependent) {
  const auto x = random_floats({50, 33}, 1), weight = random_floats({33}, 2);
  EXPECT_TRUE(same_bits(rms_norm_forward(x, {}, weight, 1e-6, 0).y.narrow(0, 20, 3),
                        rms_norm_forward(x.narrow(0, 20, 3), {}, weight, 1e-6, 0).y));
}

TEST(Norm, TwinsKeepTheType) {
  const auto x = random_floats({4, 32}, 1), weight = random_floats({32}, 2);
  const auto half = ref::rms_norm(x.to(at::kBFloat16), weight, 1e-6, 0);
  EXPECT_EQ(half.scalar_type(), at::kBFloat16);
  expect_close(half, ref::rms_norm(x.to(at::kBFloat16).to(at::kFloat), weight, 1e-6, 0), 4e-3,
               "bfloat16 computes in float32");
  EXPECT_EQ(ref::layer_norm(x.to(at::kDouble), weight, {}, 1e-6).scalar_type(), at::kDouble);
}

TEST(Norm, RefusesWhatItCannotRead) {
  const auto x = random_floats({4, 32}, 1), weight = random_floats({32}, 2);
  EXPECT_NE(message_of([&] {
              rms_norm_forward(x, {}, weight.narrow(0, 0, 31), 1e-6, 0);
            }).find("[rms_norm_forward] weight: expected contiguous Float [32]"),
            std::string::npos);
  EXPECT_NE(message_of([&] { rms_norm_forward(x.t(), {}, weight, 1e-6, 0); }).find("last dimension contiguous"),
            std::string::npos);
  EXPECT_NE(message_of([&] { rms_norm_forward(x.to(at::kDouble), {}, weight, 1e-6, 0); }).find("Double"),
            std::string::npos);
  EXPECT_NE(message_of([&] { rms_norm_forward(x, x.narrow(0, 0, 2), weight, 1e-6, 0); }).find("residual"),
            std::string::npos);
  EXPECT_NE(message_of([&] { layer_norm_backward(x, {}, x, weight, {}, at::ones({4}), {}, {}); }).find("mean"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
