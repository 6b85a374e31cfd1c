#include "models/kernels/cpu/simd_attention.h"

#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_attention.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"
#include "models/kernels/cpu/simd_online_softmax_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

void Pack(Rows rows, int64_t count, int64_t dim, int64_t padded, float scale, float* plain, float* transposed) {
  if (plain != nullptr) CopyRows(rows, count, dim, padded, scale, plain);
  if (transposed != nullptr) Transpose(rows, count, dim, scale, transposed);
}

void ForwardBlock(const AttentionCall& call, int64_t row0, int64_t head, int64_t block, Rows q, const float* keys,
                  const float* values, float* out, float* lse) {
  static thread_local std::vector<float> scratch;
  const int64_t start = block * kQueryBlock, rows = std::min(kQueryBlock, call.length - start), padded = call.padded;
  scratch.resize(16 + (call.dim + kTile + padded) * kTile);
  float* base = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) / sizeof(float) % 16;
  float *qt = base, *scores = qt + call.dim * kTile, *sums = scores + kTile * kTile;
  alignas(64) float tile_maximum[kTile] = {}, tile_sum[kTile] = {};
  Running running;
  running.Clear();
  if (call.sinks != nullptr)
    for (int64_t r = 0; r < rows; ++r) running.Begin(r, call.sinks[head]);
  std::fill_n(sums, rows * padded, 0.0f);
  Transpose({q.data + start * q.stride, q.stride}, rows, call.dim, call.q_scale, qt);
  const int32_t* first_key = call.first_key + row0 + start;

  for (int64_t tile = first_key[0] / kTile; tile * kTile < start + rows; ++tile) {
    const int64_t key0 = tile * kTile;
    const Band band{first_key, key0, start - key0, rows, std::min(kTile, call.length - key0)};
    Multiply<Into::set, Order::columns>({qt, keys + key0 * call.dim, kTile, scores, kTile}, rows,
                                        ScoreRange{band, call.dim});
    Maximum(
        call, rows, band.whole(), [&](int64_t r) CAIRN_LAMBDA { return band.first(r); },
        [&](int64_t r) CAIRN_LAMBDA { return band.last(r); }, scores, tile_maximum);
    Exponentials(rows, tile_maximum, scores, tile_sum);
    running.Join(rows, tile_maximum, tile_sum);
    if (call.drop_threshold > 0) {
      for (int64_t r = 0; r < rows; ++r) {
        F16 factor[kQuads];
        KeepFactors(call, static_cast<uint64_t>(call.first_row + row0 + start + r) * call.heads + head, tile, factor);
        for (size_t i = 0; i < kQuads; ++i)
          Store(Load(scores + r * kTile + i * kLanes) * factor[i], scores + r * kTile + i * kLanes);
      }
    }
    Multiply<Into::blend, Order::rows>(
        {scores, values + key0 * padded, padded, sums, padded, running.alpha, running.beta}, rows,
        QueryRange{band, padded});
  }

  for (int64_t r = 0; r < rows; ++r) {
    float* to = out + (start + r) * call.heads * call.dim;
    const F16 divisor = Set(running.sum[r]);
    ForColumns(call.dim,
               [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(sums + r * padded + c) / divisor, to + c, part); });
  }
  ForColumns(rows, [&](size_t r, auto part) CAIRN_LAMBDA {
    Store(MulAdd(Load(running.maximum + r), Set(0.693147181f), Log(Load(running.sum + r))), lse + start + r, part);
  });
}

void DecodeTile(const AttentionCall& call, int64_t rows, const float* q, Rows k, Rows v, int64_t tile, int64_t keys,
                const int32_t* first, const int32_t* last, float* maximum, float* sum, float* out) {
  static thread_local std::vector<float> scratch;
  const int64_t padded = call.padded, key0 = tile * kTile;
  scratch.resize(16 + (call.dim + kTile + padded) * kTile);
  float* base = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) / sizeof(float) % 16;
  float *kt = base, *scores = kt + call.dim * kTile, *plain = scores + kTile * kTile;
  Transpose({k.data + key0 * k.stride, k.stride}, keys, call.dim, 1.0f, kt);
  const float* values = v.data + key0 * v.stride;
  int64_t ldv = v.stride;
  if (call.dim != padded) {
    CopyRows({values, v.stride}, keys, call.dim, padded, 1.0f, plain);
    values = plain, ldv = padded;
  }
  bool whole = keys == kTile;
  for (int64_t r = 0; r < rows; ++r) whole = whole && first[r] <= key0 && last[r] >= key0 + kTile - 1;
  const int64_t dim = call.dim;
  Multiply<Into::set, Order::columns>({q, kt, kTile, scores, kTile}, rows, [&](int64_t, int64_t) CAIRN_LAMBDA {
    return Range{0, kTile, 0, dim};
  });
  Maximum(
      call, rows, whole, [&](int64_t r) CAIRN_LAMBDA { return first[r] - key0; },
      [&](int64_t r) CAIRN_LAMBDA { return last[r] - key0; }, scores, maximum);
  Exponentials(rows, maximum, scores, sum);
  Multiply<Into::set, Order::rows>({scores, values, ldv, out, padded}, rows, [&](int64_t, int64_t) CAIRN_LAMBDA {
    return Range{0, padded, 0, keys};
  });
}

void DecodeJoin(const AttentionCall& call, int64_t rows, int64_t tiles, const float* maximum, const float* sum,
                const float* out, int64_t tile_stride, const float* sink, float* const* to) {
  static thread_local std::vector<float> sums;
  const int64_t padded = call.padded;
  sums.assign(rows * padded, 0.0f);
  Running running;
  running.Clear();
  if (sink != nullptr)
    for (int64_t r = 0; r < rows; ++r) running.Begin(r, sink[r]);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    running.Join(rows, maximum + tile * kTile, sum + tile * kTile);
    for (int64_t r = 0; r < rows; ++r) {
      const F16 a = Set(running.alpha[r]), b = Set(running.beta[r]);
      const float* from = out + tile * tile_stride + r * padded;
      float* row = sums.data() + r * padded;
      for (int64_t c = 0; c < padded; c += kLanes) Store(MulAdd(Load(from + c), b, Load(row + c) * a), row + c);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const F16 divisor = Set(running.sum[r]);
    ForColumns(call.dim, [&](size_t c, auto part)
                             CAIRN_LAMBDA { Store(Load(sums.data() + r * padded + c) / divisor, to[r] + c, part); });
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(Pack);
HWY_EXPORT(ForwardBlock);
HWY_EXPORT(DecodeTile);
HWY_EXPORT(DecodeJoin);

void attention_pack(Rows rows, int64_t count, int64_t dim, int64_t padded, float scale, float* plain,
                    float* transposed) {
  HWY_DYNAMIC_DISPATCH(Pack)(rows, count, dim, padded, scale, plain, transposed);
}
void attention_forward_block(const AttentionCall& call, int64_t row0, int64_t head, int64_t block, Rows q,
                             const float* keys, const float* values, float* out, float* lse) {
  HWY_DYNAMIC_DISPATCH(ForwardBlock)(call, row0, head, block, q, keys, values, out, lse);
}
void attention_decode_tile(const AttentionCall& call, int64_t rows, const float* q, Rows k, Rows v, int64_t tile,
                           int64_t keys, const int32_t* first, const int32_t* last, float* maximum, float* sum,
                           float* out) {
  HWY_DYNAMIC_DISPATCH(DecodeTile)(call, rows, q, k, v, tile, keys, first, last, maximum, sum, out);
}
void attention_decode_join(const AttentionCall& call, int64_t rows, int64_t tiles, const float* maximum,
                           const float* sum, const float* out, int64_t tile_stride, const float* sink,
                           float* const* to) {
  HWY_DYNAMIC_DISPATCH(DecodeJoin)(call, rows, tiles, maximum, sum, out, tile_stride, sink, to);
}

}  // namespace cairn::kernels
#endif
