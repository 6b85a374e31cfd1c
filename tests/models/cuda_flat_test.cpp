// labels: quick
// The optimizer's passes on a GPU against the arithmetic of optim/kernels/passes.h written out: equal to the bit.
#include <cmath>

#include "tests/models/cuda_checks.h"

namespace cairn::kernels {
namespace {

using namespace testing;

class CudaFlat : public CudaTest {};

void adamw_by_hand(float& p, float& g, float& m, float& v, float decay, const cuda::AdamwScalars& s) {
  const float scaled = g * s.grad_scale;
  m = std::fma(s.one_minus_beta1, scaled - m, m);
  v = std::fma(s.one_minus_beta2 * scaled, scaled, s.beta2 * v);
  const float denominator = std::fma(std::sqrt(v), s.inv_sqrt_correction2, s.eps);
  p = std::fma(-s.step_size, m / denominator, decay * p);
  if (s.clear_grad) g = 0;
}

TEST_F(CudaFlat, AdamwHasTheBitsOfTheCpu) {
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t n : {1, 255, 100003}) {
      const auto p = random_floats({n}, 1).to(type), m = at::zeros({n}), v = at::zeros({n});
      const auto gpu_p = on_gpu(p), gpu_m = on_gpu(m), gpu_v = on_gpu(v);
      for (int step = 1; step <= 5; ++step) {
        const auto g = random_floats({n}, 10 + step, 0.1), gpu_g = on_gpu(g);
        const float t = static_cast<float>(step);
        const cuda::AdamwScalars s = {.grad_scale = 0.7f,
                                      .one_minus_beta1 = 0.1f,
                                      .beta2 = 0.95f,
                                      .one_minus_beta2 = 0.05f,
                                      .inv_sqrt_correction2 = 1 / std::sqrt(1 - std::pow(0.95f, t)),
                                      .eps = 1e-8f,
                                      .step_size = 1e-2f / (1 - std::pow(0.9f, t)),
                                      .clear_grad = step % 2 == 0};
        table->adamw({.p = gpu_p.data_ptr(),
                      .g = gpu_g.data_ptr<float>(),
                      .m = gpu_m.data_ptr<float>(),
                      .v = gpu_v.data_ptr<float>(),
                      .n = n,
                      .decay = 0.999f,
                      .type = type == at::kFloat ? cuda::Type::float32 : cuda::Type::bfloat16},
                     s);
        for (int64_t i = 0; i < n; ++i) {
          float wide = type == at::kFloat ? p.data_ptr<float>()[i] : static_cast<float>(p.data_ptr<at::BFloat16>()[i]);
          adamw_by_hand(wide, g.data_ptr<float>()[i], m.data_ptr<float>()[i], v.data_ptr<float>()[i], 0.999f, s);
          if (type == at::kFloat)
            p.data_ptr<float>()[i] = wide;
          else
            p.data_ptr<at::BFloat16>()[i] = wide;
        }
        EXPECT_TRUE(same_bits(gpu_g.cpu(), g)) << n << " step " << step;
      }
      EXPECT_TRUE(same_bits(gpu_p.cpu(), p)) << n << " " << c10::toString(type);
      EXPECT_TRUE(same_bits(gpu_m.cpu(), m)) << n;
      EXPECT_TRUE(same_bits(gpu_v.cpu(), v)) << n;
    }
}

TEST_F(CudaFlat, SquaredNormHasTheBitsOfTheCpu) {
  constexpr int64_t piece = 4096;  // kPiece of optim/norm.h
  for (int64_t n : {1, 15, 16, 4096, 4097, 1000003}) {
    const auto flat = random_floats({n}, 3), gpu = on_gpu(flat);
    const float* x = flat.const_data_ptr<float>();
    const int64_t pieces = (n + piece - 1) / piece;
    std::vector<double> got(pieces, -1), again(pieces, -1);
    table->squared_norm_pieces(gpu, piece, got.data());
    table->squared_norm_pieces(gpu, piece, again.data());
    for (int64_t k = 0; k < pieces; ++k) {
      double lane[16] = {};
      for (int64_t i = k * piece; i < std::min(n, (k + 1) * piece); ++i)
        lane[i % 16] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      for (int stride = 1; stride < 16; stride *= 2)
        for (int i = 0; i < 16; i += 2 * stride) lane[i] += lane[i + stride];
      ASSERT_EQ(got[k], lane[0]) << n << " piece " << k;
      ASSERT_EQ(again[k], got[k]);
    }
  }
}

}  // namespace
}  // namespace cairn::kernels
