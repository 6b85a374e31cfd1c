#include <vector>

#include "models/kernels/cpu/simd_attention.h"
#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_attention_backward.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// Scratch of one block of query rows.
struct BlockScratch {
  std::vector<float> memory;
  float *qt, *q, *dot, *dout, *p, *ds,
      *dq;  // qt, dot: transposed [dim, 64]; q, dout, dq: [64, padded]; p, ds: [64, 64]

  void Resize(int64_t dim, int64_t padded) {
    memory.resize(16 + kTile * (2 * dim + 3 * padded + 2 * kTile));
    float* next = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float) % 16;
    const auto take = [&](int64_t columns) {
      float* from = next;
      next += kTile * columns;
      return from;
    };
    qt = take(dim), dot = take(dim), q = take(padded), dout = take(padded), dq = take(padded), p = take(kTile),
    ds = take(kTile);
  }
};

// Scores and gradients of the probabilities [rows, 64] -> probabilities (dropped ones zero, kept ones scaled) and
// gradients of the scores (of the argument of tanh where capped, without the factors that dq_scale and dk_scale hold).
HWY_INLINE void Gradients(const AttentionCall& call, const Band& band, uint64_t row_head, int64_t tile,
                          const float* lse, const float* delta, float* p, float* ds) {
  const bool whole = band.whole(), drop = call.drop_threshold > 0;
  for (int64_t r = 0; r < band.rows; ++r) {
    float *p_row = p + r * kTile, *ds_row = ds + r * kTile;
    const F16 base = Set(lse[r]), offset = Set(delta[r]);
    const float first = static_cast<float>(band.first(r)), last = static_cast<float>(band.last(r));
    F16 factor[kQuads];
    if (drop) KeepFactors(call, row_head + r * call.heads, tile, factor);
    for (size_t i = 0; i < kQuads; ++i) {
      F16 s = Load(p_row + i * kLanes), dp = Load(ds_row + i * kLanes), slope = Set(1.0f);
      if (call.cap > 0) {
        const F16 t = Tanh(s);
        s = Set(call.cap) * t;
        slope = NegMulAdd(t, t, slope);
      }
      F16 prob = Exp2(s - base);
      if (!whole) {
        prob = Within(prob, i, first, last, Zero());
        dp = Within(dp, i, first, last, Zero());
        slope = Within(slope, i, first, last, Zero());
      }
      F16 kept = prob;
      if (drop) kept = prob * factor[i], dp = dp * factor[i];
      Store(kept, p_row + i * kLanes);
      Store(call.cap > 0 ? prob * (dp - offset) * slope : prob * (dp - offset), ds_row + i * kLanes);
    }
  }
}

void BackwardPieceRun(const AttentionCall& call, const BackwardPiece& piece) {
  static thread_local BlockScratch s;
  const int64_t dim = call.dim, padded = call.padded, group = call.heads / call.kv_heads;
  const int64_t blocks = (call.length + kQueryBlock - 1) / kQueryBlock;
  s.Resize(dim, padded);
  if (dim != padded) std::fill_n(s.q, kTile * padded, 0.0f), std::fill_n(s.dout, kTile * padded, 0.0f);

  for (int64_t entry = piece.begin; entry < piece.end; ++entry) {
    const int64_t head = piece.kv_head * group + entry / blocks, start = entry % blocks * kQueryBlock;
    const int64_t rows = std::min(kQueryBlock, call.length - start), row = piece.row0 + start;
    const Rows q{piece.q.data + row * piece.q.stride + head * dim, piece.q.stride};
    const Rows dout{piece.dout.data + row * piece.dout.stride + head * dim, piece.dout.stride};
    const float* out = piece.out.data + row * piece.out.stride + head * dim;
    Transpose(q, rows, dim, call.q_scale, s.qt);
    CopyRows(q, rows, dim, padded, call.q_scale, s.q);
    Transpose(dout, rows, dim, 1.0f, s.dot);
    CopyRows(dout, rows, dim, padded, 1.0f, s.dout);
    std::fill_n(s.dq, rows * padded, 0.0f);
    alignas(64) float lse[kTile], delta[kTile];
    for (int64_t r = 0; r < rows; ++r) {
      const float *o = out + r * piece.out.stride, *g = dout.data + r * dout.stride;
      F16 sum = Zero();
      ForColumns(dim,
                 [&](size_t c, auto part) CAIRN_LAMBDA { sum = MulAdd(Load(o + c, part), Load(g + c, part), sum); });
      delta[r] = ReduceSum(sum);
      lse[r] = piece.lse[head * call.length + start + r] * 1.44269504f;
    }

    const int32_t* first_key = call.first_key + row;
    const uint64_t row_head = static_cast<uint64_t>(call.first_row + row) * call.heads + head;
    for (int64_t tile = first_key[0] / kTile; tile * kTile < start + rows; ++tile) {
      const int64_t key0 = tile * kTile;
      const Band band{first_key, key0, start - key0, rows, std::min(kTile, call.length - key0)};
      const ScoreRange scores{band, dim};
      Multiply<Into::set, Order::columns>({s.qt, piece.keys + key0 * dim, kTile, s.p, kTile}, rows, scores);
      Multiply<Into::set, Order::columns>({s.dot, piece.values + key0 * dim, kTile, s.ds, kTile}, rows, scores);
      Gradients(call, band, row_head, tile, lse, delta, s.p, s.ds);
      const KeyRange by_key{band, padded};
      Multiply<Into::add, Order::columns>({s.p, s.dout, padded, piece.dv + key0 * padded, padded}, band.keys, by_key);
      Multiply<Into::add, Order::columns>({s.ds, s.q, padded, piece.dk + key0 * padded, padded}, band.keys, by_key);
      Multiply<Into::add, Order::rows>({s.ds, piece.keys_plain + key0 * padded, padded, s.dq, padded}, rows,
                                       QueryRange{band, padded});
    }
    const F16 scale = Set(call.dq_scale);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = piece.dq + (row + r) * piece.dq_stride + head * dim;
      ForColumns(dim,
                 [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(s.dq + r * padded + c) * scale, to + c, part); });
    }
  }
}

void Join(const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin, int64_t end, int64_t dim,
          int64_t padded, float scale, float* to, int64_t stride) {
  const F16 factor = Set(scale);
  for (int64_t r = begin; r < end; ++r) {
    float* row = to + r * stride;
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA {
      F16 sum = Load(sums + r * padded + c);
      for (int64_t p = 1; p < pieces; ++p) sum = sum + Load(sums + p * piece_stride + r * padded + c);
      Store(sum * factor, row + c, part);
    });
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(BackwardPieceRun);
HWY_EXPORT(Join);

void attention_backward_piece(const AttentionCall& call, const BackwardPiece& piece) {
  HWY_DYNAMIC_DISPATCH(BackwardPieceRun)(call, piece);
}
void attention_join(const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin, int64_t end, int64_t dim,
                    int64_t padded, float scale, float* to, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(Join)(sums, pieces, piece_stride, begin, end, dim, padded, scale, to, stride);
}

}  // namespace cairn::kernels
#endif
