// labels: quick
#include "models/kernels/ref/norm.h"
#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

class CudaNorm : public CudaTest {};

struct Case {
  std::vector<int64_t> shape;
  bool residual, dsum;
  double offset;
};
// Both sides of the border between a warp a row and a block a row (512), and of what a block holds.
const Case kCases[] = {
    {{1, 1}, false, false, 0},    {{1, 16}, true, true, 0},        {{7, 17}, true, false, 1},
    {{33, 256}, true, true, 1},   {{200, 512}, false, true, 0},    {{2048, 64}, true, true, 0},
    {{5, 3, 24}, true, true, 0},  {{300, 4, 40}, false, false, 1}, {{70, 1000}, true, false, 0},
    {{129, 4096}, true, true, 0}, {{9000, 513}, false, false, 0},
};

at::Tensor maybe(bool wanted, const at::Tensor& x) { return wanted ? x : at::Tensor(); }

TEST_F(CudaNorm, EqualsTheTwinInDouble) {
  const double eps = 1e-5;
  for (const Case& c : kCases)
    for (auto type : {at::kFloat, at::kBFloat16})
      for (auto weight_type : {at::kFloat, at::kBFloat16}) {
        const int64_t D = c.shape.back();
        const std::string name = fmt::format("{} offset {} {} weight {}", c.shape, c.offset, c10::toString(type),
                                             c10::toString(weight_type));
        const auto random = [&](uint64_t seed) { return random_floats(c.shape, seed).to(type); };
        const auto x = random(1), residual = random(2), dy = random(4), dsum = random(5);
        const auto weight = random_floats({D}, 3).to(weight_type);
        const auto out =
            table->rms_norm_forward(on_gpu(x), on_gpu(maybe(c.residual, residual)), on_gpu(weight), eps, c.offset);
        const auto sum = c.residual ? x + residual : x;
        EXPECT_TRUE(same_bits(out.sum.cpu(), sum)) << name;
        EXPECT_EQ(out.y.scalar_type(), type);
        expect_close(out.y.cpu(), ref::rms_norm(sum.to(at::kDouble), weight, eps, c.offset), tolerance(type),
                     name + " y");

        auto dweight = on_gpu(at::ones({D}));
        const auto ds = table->rms_norm_backward(on_gpu(dy), on_gpu(maybe(c.dsum, dsum)), out.sum, on_gpu(weight),
                                                 out.rstd, c.offset, dweight, {});
        auto twin = [&](const Tensors& in) { return Tensors{ref::rms_norm(in[0], in[1], eps, c.offset)}; };
        auto oracle = oracle_gradients(twin, {sum, weight}, {dy});
        if (c.dsum) oracle[0] = oracle[0] + dsum.to(at::kDouble);
        expect_close(ds.cpu(), oracle[0], 2 * tolerance(type), name + " ds");
        expect_close(dweight.cpu() - 1, oracle[1], 4e-6, name + " dweight");

        // A frozen weight changes nothing else; the result may overwrite dy; the same numbers give the same bits.
        const auto in_place = on_gpu(dy);
        table->rms_norm_backward(in_place, on_gpu(maybe(c.dsum, dsum)), out.sum, on_gpu(weight), out.rstd, c.offset, {},
                                 in_place);
        EXPECT_TRUE(same_bits(in_place.cpu(), ds.cpu())) << name;
        auto again = on_gpu(at::ones({D}));
        const auto overwritten = on_gpu(dy);
        table->rms_norm_backward(overwritten, on_gpu(maybe(c.dsum, dsum)), out.sum, on_gpu(weight), out.rstd, c.offset,
                                 again, overwritten);
        EXPECT_TRUE(same_bits(again.cpu(), dweight.cpu())) << name;
      }
}

// Heads of a fused product, and its gradient written back in place.
TEST_F(CudaNorm, TakesViewsOfAFusedProduct) {
  const int64_t N = 130, H = 3, K = 2, D = 24;
  const auto fused = on_gpu(random_floats({N, (H + 2 * K) * D}, 1)), dfused = on_gpu(random_floats(fused.sizes(), 2));
  const auto weight = on_gpu(random_floats({D}, 3));
  auto heads = [&](const at::Tensor& x) { return x.view({N, H + 2 * K, D}).narrow(1, H, K); };
  const auto view = heads(fused), dview = heads(dfused);
  const auto out = table->rms_norm_forward(view, {}, weight, 1e-6, 0);
  const auto plain = table->rms_norm_forward(view.contiguous(), {}, weight, 1e-6, 0);
  EXPECT_TRUE(same_bits(out.y.cpu(), plain.y.cpu()));
  const auto expected = table->rms_norm_backward(dview.contiguous(), {}, plain.sum, weight, plain.rstd, 0, {}, {});
  const auto untouched = dfused.view({N, H + 2 * K, D}).narrow(1, 0, H).clone();
  table->rms_norm_backward(dview, {}, out.sum, weight, out.rstd, 0, {}, dview);
  EXPECT_TRUE(same_bits(dview.cpu(), expected.cpu()));
  EXPECT_TRUE(same_bits(dfused.view({N, H + 2 * K, D}).narrow(1, 0, H).cpu(), untouched.cpu()));
}

TEST_F(CudaNorm, RowsAreIndependent) {
  for (int64_t D : {33, 700}) {
    const auto x = on_gpu(random_floats({50, D}, 1)), weight = on_gpu(random_floats({D}, 2));
    EXPECT_TRUE(same_bits(table->rms_norm_forward(x, {}, weight, 1e-6, 0).y.narrow(0, 20, 3).cpu(),
                          table->rms_norm_forward(x.narrow(0, 20, 3), {}, weight, 1e-6, 0).y.cpu()));
  }
}

TEST_F(CudaNorm, RefusesWhatItCannotRead) {
  const auto x = on_gpu(random_floats({4, 32}, 1)), weight = on_gpu(random_floats({32}, 2));
  EXPECT_NE(message_of([&] { table->rms_norm_forward(x, {}, weight.cpu(), 1e-6, 0); }).find("weight: expected"),
            std::string::npos);
  EXPECT_NE(message_of([&] { table->rms_norm_forward(x.t(), {}, weight, 1e-6, 0); }).find("last dimension contiguous"),
            std::string::npos);
  EXPECT_NE(message_of([&] { table->rms_norm_forward(x, x.narrow(0, 0, 2), weight, 1e-6, 0); }).find("residual"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::kernels
