// What the forward and the backward pass of the gated delta rule share, once for every target.
//
// Of one head, with S [Dk, Dv] the state, a chunk of C rows, G the running sum of g inside the chunk:
//   D[i][j] = exp(G[i] - G[j]), gamma[i] = exp(G[i]), kappa[i] = exp(G[C] - G[i])
//   (1 + strictly lower(D * K K^T) diag(beta)) X = V - diag(gamma) K S     X: what the state lacks, before beta
//   U = diag(beta) X
//   O = diag(gamma) Q S + lower(D * Q K^T) U
//   S' = exp(G[C]) S + K^T diag(kappa) U
// which is the UT transform of Yang et al. 2024 solved row block by row block instead of inverted: heads are taken
// chunk after chunk, so the state is at hand.

#if defined(CAIRN_MODELS_KERNELS_CPU_SIMD_DELTA_RULE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CAIRN_MODELS_KERNELS_CPU_SIMD_DELTA_RULE_INL_H
#undef CAIRN_MODELS_KERNELS_CPU_SIMD_DELTA_RULE_INL_H
#else
#define CAIRN_MODELS_KERNELS_CPU_SIMD_DELTA_RULE_INL_H
#endif

#include <cmath>
#include <vector>

#include "models/kernels/cpu/simd_delta_rule.h"
#include "models/kernels/cpu/simd_tiles_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr int64_t kRows = kDeltaChunk;
constexpr int64_t kRowQuads = kRows / int64_t{kLanes};

// Hands out aligned pieces of one piece of memory that a thread keeps.
class DeltaScratch {
 public:
  // As many floats as take() will be asked for.
  void Reserve(int64_t floats) {
    if (static_cast<int64_t>(memory_.size()) < floats + 16) memory_.resize(floats + 16);
    next_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) / sizeof(float) % 16;
  }
  float* Take(int64_t floats) {
    float* from = next_;
    next_ += floats;
    return from;
  }

 private:
  std::vector<float> memory_;
  float* next_ = nullptr;
};

// Rows of q or k: times `scale`, and divided by their norm where eps > 0; factor[r] is what row r was multiplied with.
HWY_INLINE void LoadKeys(const float* from, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float eps,
                         float scale, float* to, float* factor) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = from + r * stride;
    float* y = to + r * padded;
    float f = scale;
    if (eps > 0) {
      F16 squares = Zero();
      ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA {
        const F16 a = Load(x + c, part);
        squares = MulAdd(a, a, squares);
      });
      f = scale / std::sqrt(ReduceSum(squares) + eps);
    }
    factor[r] = f;
    const F16 s = Set(f);
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(x + c, part) * s, y + c); });
  }
}

// The decays of one head in one chunk. G is kept in two floats: differences of neighbours stay exact however far the
// sum has run.
struct Decays {
  alignas(64) float high[kRows], low[kRows], gamma[kRows], kappa[kRows], beta[kRows];
  float total;  // exp(G[C])

  void Fill(const DeltaCall& call, const DeltaChunk& chunk, int64_t head) {
    const float *g = call.g + chunk.row * call.value_heads + head, *b = call.beta + chunk.row * call.value_heads + head;
    double sum = 0;
    for (int64_t i = 0; i < kRows; ++i) {
      if (i < chunk.rows) sum += g[i * call.value_heads];
      high[i] = static_cast<float>(sum);
      low[i] = static_cast<float>(sum - high[i]);
      beta[i] = i < chunk.rows ? b[i * call.value_heads] : 0.0f;
    }
    const F16 end_high = Set(high[kRows - 1]), end_low = Set(low[kRows - 1]);
    for (int64_t i = 0; i < kRows; i += kLanes) {
      const F16 h = Load(high + i), l = Load(low + i), e = Exp(h);
      Store(MulAdd(e, l, e), gamma + i);
      Store(Exp((end_high - h) + (end_low - l)), kappa + i);
    }
    total = gamma[kRows - 1];
  }
  // D[i][16 quad ...], zero above the diagonal.
  HWY_INLINE F16 Row(int64_t i, int64_t quad, F16 column) const {
    const F16 x = (Set(high[i]) - Load(high + quad * kLanes)) + (Set(low[i]) - Load(low + quad * kLanes));
    return IfThenElseZero(Le(column, Set(static_cast<float>(i))), Exp(x));
  }
};

HWY_INLINE F16 ColumnsOf(int64_t quad) {
  F16 a;
  CAIRN_PARTS a.v[p] = hn::Iota(Tag(), static_cast<float>(quad * kLanes + p * kWidth));
  return a;
}

// From kk = K K^T and qk = Q K^T: a[i][j] = D kk (times beta[j], or beta[i] where by_row), zero from the diagonal on;
// p[i][j] = D qk, zero above the diagonal; d = D where it is wanted. All [64, 64]; whole rows are written.
template <bool kByRow>
HWY_INLINE void DecayTiles(const Decays& s, int64_t rows, const float* kk, const float* qk, float* a, float* p,
                           float* d) {
  for (int64_t i = 0; i < rows; ++i) {
    const F16 row = Set(static_cast<float>(i)), row_beta = Set(s.beta[i]);
    for (int64_t quad = 0; quad < kRowQuads; ++quad) {
      const int64_t at = i * kRows + quad * int64_t{kLanes};
      F16 decay = Zero(), lower = Zero(), score = Zero();
      if (quad * int64_t{kLanes} <= i) {
        const F16 column = ColumnsOf(quad);
        decay = s.Row(i, quad, column);
        const F16 beta = kByRow ? row_beta : Load(s.beta + quad * kLanes);
        lower = IfThenElseZero(Lt(column, row), decay * Load(kk + at) * beta);
        score = decay * Load(qk + at);
      }
      Store(lower, a + at);
      Store(score, p + at);
      if (d != nullptr) Store(decay, d + at);
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, per target
