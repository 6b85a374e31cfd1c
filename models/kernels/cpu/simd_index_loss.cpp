#include "models/kernels/cpu/simd_index_loss.h"

#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_index_loss.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"
#include "models/kernels/cpu/simd_gather_inl.h"
#include "models/kernels/cpu/simd_index_scores_inl.h"
#include "models/kernels/cpu/simd_topk_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kTiny = std::numeric_limits<float>::min();  // the least normal number
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

HWY_INLINE float* AlignedFloats(std::vector<float>& memory, int64_t floats) {
  memory.resize(floats + 16);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float) % 16;
}

HWY_INLINE void PadRow(const float* from, int64_t dim, float scale, float* to) {
  const F16 s = Set(scale);
  ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c, part) * s, to + c); });
}

HWY_INLINE float NaturalLog(float x) {
  alignas(64) float lane[kLanes];
  Store(Log(Set(x)), lane);
  return lane[0];
}

// One row's loss over [0, count): scores (-inf: not in it) and p -> KL; the scores become coefficient (softmax - p).
// What stands behind `count` up to a multiple of 16 is overwritten: -inf in the scores, 0 in p.
HWY_INLINE float LossOfRow(float* scores, float* p, int64_t count, float coefficient) {
  if (count % kLanes != 0) {
    Store(Set(kNever), scores + count);
    Store(Zero(), p + count);
  }
  F16 maximum = Set(kNever);
  for (int64_t i = 0; i < count; i += kLanes) maximum = Max(maximum, Load(scores + i));
  const float most = ReduceMax(maximum);
  const F16 base = Set(most == kNever ? 0.0f : most), log2e = Set(kLog2E);
  F16 sum = Zero();
  for (int64_t i = 0; i < count; i += kLanes) sum = sum + Exp2((Load(scores + i) - base) * log2e);
  const float total = ReduceSum(sum), lse = (most == kNever ? 0.0f : most) + NaturalLog(total);
  const F16 log_sum = Set(lse), inverse = Set(1.0f / total), factor = Set(coefficient), nothing = Set(kNever);
  F16 kl = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const F16 s = Load(scores + i), share = Load(p + i);
    const M16 in = Gt(s, nothing);
    const F16 term = share * (Log(Max(share, Set(kTiny))) - (s - log_sum));
    kl = kl + IfThenElseZero(in, IfThenElseZero(Gt(share, Zero()), term));
    Store(IfThenElseZero(in, factor * (Exp2((s - base) * log2e) * inverse - share)), scores + i);
  }
  return ReduceSum(kl);
}

// ---- listed keys

// Scores of a row in units of log2, head g at scores + g * ld.
HWY_INLINE void MassScores(const ListedMass& job, int64_t t, float* q, float* scores, int64_t ld) {
  for (int64_t g = 0; g < job.group; ++g)
    PadRow(job.q.data + t * job.q.stride + g * job.dim, job.dim, job.scale, q + g * job.padded);
  for (int64_t i = 0; i < job.count[t]; i += kListTile) {
    const Listed tile{job.keys, job.padded, job.selected + t * job.width + i, std::min(kListTile, job.count[t] - i)};
    Dots(q, job.padded, job.group, tile, job.padded, scores + i, ld);
  }
  for (int64_t g = 0; g < job.group; ++g) Store(Set(kNever), scores + g * ld + job.count[t]);
}

void AddListedMass(const ListedMass& job, int64_t begin, int64_t end, float* mass, int64_t ld) {
  static thread_local std::vector<float> memory;
  float *q = AlignedFloats(memory, job.group * (job.padded + ld)), *scores = q + job.group * job.padded;
  for (int64_t t = begin; t < end; ++t) {
    MassScores(job, t, q, scores, ld);
    float* to = mass + (t - begin) * ld;
    for (int64_t g = 0; g < job.group; ++g) {
      const F16 base = Set(job.lse[g * job.lse_stride + t] * kLog2E);
      for (int64_t i = 0; i < job.count[t]; i += kLanes)
        Store(Load(to + i) + Exp2(Load(scores + g * ld + i) - base), to + i);
    }
  }
}

void ListedShare(const ListedMass& job, int64_t begin, int64_t end, float* share, int64_t stride) {
  static thread_local std::vector<float> memory;
  const int64_t ld = (job.width + 15) / 16 * 16 + 16;
  float *q = AlignedFloats(memory, job.group * (job.padded + ld)), *scores = q + job.group * job.padded;
  for (int64_t t = begin; t < end; ++t) {
    MassScores(job, t, q, scores, ld);
    for (int64_t g = 0; g < job.group; ++g) {
      const F16 base = Set(job.lse[g * job.lse_stride + t] * kLog2E);
      F16 sum = Zero();
      for (int64_t i = 0; i < job.count[t]; i += kLanes) sum = sum + Exp2(Load(scores + g * ld + i) - base);
      share[t * stride + g] = ReduceSum(sum);
    }
  }
}

void Normalise(const float* mass, int64_t rows, int64_t ld, const int32_t* count, float weight, bool add, float* p) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = mass + r * ld;
    float* to = p + r * ld;
    F16 sum = Zero();
    for (int64_t i = 0; i < count[r]; i += kLanes) sum = sum + Load(from + i);
    const F16 factor = Set(weight / std::max(ReduceSum(sum), kTiny));
    for (int64_t i = 0; i < count[r]; i += kLanes) {
      const F16 share = Load(from + i) * factor;
      Store(add ? Load(to + i) + share : share, to + i);
    }
  }
}

void ListedLoss(const IndexerRows& job, const int32_t* selected, const int32_t* counts, int64_t width, const float* p,
                int64_t ld, int64_t begin, int64_t end) {
  static thread_local std::vector<float> memory;
  const int64_t heads = job.heads, padded = job.padded;
  float* q = AlignedFloats(memory, heads * (2 * padded + ld) + 2 * ld);
  float *dq = q + heads * padded, *act = dq + heads * padded, *scores = act + heads * ld, *share = scores + ld;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t count = counts[t];
    const float* w = job.w + t * job.w_stride;
    const bool counted = t > job.start[t] && count > 0;
    if (!counted) {
      job.kl[t] = 0;
      if (job.coefficient != 0) {
        std::fill_n(job.dq + t * heads * job.dim, heads * job.dim, 0.0f);
        std::fill_n(job.dw + t * heads, heads, 0.0f);
      }
      continue;
    }
    const auto tile_at = [&](int64_t i) CAIRN_LAMBDA {
      return Listed{job.keys, padded, selected + t * width + i, std::min(kListTile, count - i)};
    };
    for (int64_t j = 0; j < heads; ++j) PadRow(job.q + t * job.q_stride + j * job.dim, job.dim, 1.0f, q + j * padded);
    for (int64_t i = 0; i < count; i += kListTile) Dots(q, padded, heads, tile_at(i), padded, act + i, ld);
    for (int64_t j = 0; j < heads; ++j) Store(Zero(), act + j * ld + count);  // the last vector's rest
    for (int64_t i = 0; i < count; i += kLanes) {
      F16 s = Zero();
      for (int64_t j = 0; j < heads; ++j) s = MulAdd(Max(Zero(), Load(act + j * ld + i)), Set(w[j]), s);
      Store(s, scores + i);
      Store(Load(p + (t - begin) * ld + i), share + i);
    }
    job.kl[t] = LossOfRow(scores, share, count, job.coefficient);
    if (job.coefficient == 0) continue;
    // The gradient of a dot product takes its place.
    for (int64_t j = 0; j < heads; ++j) {
      F16 sum = Zero();
      const F16 weight = Set(w[j]);
      for (int64_t i = 0; i < count; i += kLanes) {
        const F16 a = Load(act + j * ld + i), d = Load(scores + i);
        const M16 on = Gt(a, Zero());
        sum = sum + IfThenElseZero(on, a * d);
        Store(IfThenElseZero(on, d * weight), act + j * ld + i);
      }
      job.dw[t * heads + j] = ReduceSum(sum);
    }
    std::fill_n(dq, heads * padded, 0.0f);
    for (int64_t i = 0; i < count; i += kListTile) {
      AddWeighted(act + i, ld, heads, tile_at(i), padded, dq, padded);
      Scatter(act + i, ld, heads, q, padded, padded, tile_at(i), job.dk);
    }
    for (int64_t j = 0; j < heads; ++j) {
      float* to = job.dq + (t * heads + j) * job.dim;
      ForColumns(job.dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(dq + j * padded + c), to + c, part); });
    }
  }
}

// ---- all candidates

struct DenseScratch {
  std::vector<float> memory;
  float *qt, *q, *tile, *gradient, *dq;

  // Queries of the widest source, and of the indexer.
  void Resize(int64_t transposed, int64_t plain) {
    float* next = AlignedFloats(memory, kTile * (transposed + 2 * plain + 2 * kTile));
    qt = next, q = qt + kTile * transposed, dq = q + kTile * plain, tile = dq + kTile * plain,
    gradient = tile + kTile * kTile;
  }
};

// Columns of a row that a band shows, as floats.
struct Edges {
  float first, last;
};
HWY_INLINE Edges EdgesOf(const Band& band, int64_t r) {
  return {static_cast<float>(band.first(r)), static_cast<float>(band.last(r))};
}

// strip[r][key] = attention mass of every pair of the block, 0 where there is none; then divided by its sum.
HWY_INLINE void MassStrip(const DenseMass& source, const int32_t* start, int64_t length, int64_t row0, int64_t rows,
                          DenseScratch& s, float* strip, int64_t ld) {
  const int64_t group = source.heads / source.kv_heads;
  for (int64_t h = 0; h < source.heads; ++h)
    Transpose({source.q.data + row0 * source.q.stride + h * source.dim, source.q.stride}, rows, source.dim,
              source.scale, s.qt + h * source.dim * kTile);
  for (int64_t key0 = start[row0] / kTile * kTile; key0 < row0 + rows; key0 += kTile) {
    const Band band{start + row0, key0, row0 - key0, rows, std::min(kTile, length - key0)};
    const bool whole = band.whole();
    for (int64_t h = 0; h < source.heads; ++h) {
      const float* keys = source.key_tiles + h / group * source.head_stride + key0 * source.dim;
      Multiply<Into::set, Order::columns>({s.qt + h * source.dim * kTile, keys, kTile, s.tile, kTile}, rows,
                                          ScoreRange{band, source.dim});
      const float* lse = source.lse + h * length + row0;
      for (int64_t r = 0; r < rows; ++r) {
        const F16 base = Set(lse[r] * kLog2E);
        const Edges edges = EdgesOf(band, r);
        float* to = strip + r * ld + key0;
        for (size_t i = 0; i < kQuads; ++i) {
          F16 mass = Exp2(Load(s.tile + r * kTile + i * kLanes) - base);
          if (!whole) mass = Within(mass, i, edges.first, edges.last, Zero());
          Store(h > 0 ? Load(to + i * kLanes) + mass : mass, to + i * kLanes);
        }
      }
    }
  }
}

void DenseBlock(const IndexerRows& job, const DenseMass* sources, int64_t source_count, const DenseRecall& recall,
                int64_t length, int64_t block, float* strips, int64_t ld) {
  static thread_local DenseScratch s;
  static thread_local std::vector<float> values;
  static thread_local std::vector<int32_t> positions;
  const int64_t row0 = block * kTile, rows = std::min(kTile, length - row0), heads = job.heads, padded = job.padded;
  const int32_t* start = job.start;
  int64_t transposed = heads * job.dim;
  for (int64_t i = 0; i < source_count; ++i) transposed = std::max(transposed, sources[i].heads * sources[i].dim);
  s.Resize(transposed, heads * padded);
  float *p = strips, *scores = strips + kTile * ld, *more = strips + 2 * kTile * ld;
  const int64_t first_tile = start[row0] / kTile * kTile, end = (row0 + rows + kTile - 1) / kTile * kTile,
                columns = end - first_tile;

  for (int64_t i = 0; i < source_count; ++i) {
    float* strip = i == 0 ? p : more;
    MassStrip(sources[i], start, length, row0, rows, s, strip, ld);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t count = static_cast<int32_t>(columns);
      Normalise(strip + r * ld + first_tile, 1, ld, &count, 1.0f / static_cast<float>(source_count), i > 0,
                p + r * ld + first_tile);
    }
  }

  // The indexer's scores, and what they would choose.
  for (int64_t key0 = first_tile; key0 < end; key0 += kTile) {
    const Band band{start + row0, key0, row0 - key0, rows, std::min(kTile, length - key0)};
    for (int64_t r = 0; r < rows; ++r) {
      float* to = scores + r * ld + key0;
      ScoreTile(job.q + (row0 + r) * job.q_stride, job.w + (row0 + r) * job.w_stride, heads, job.dim,
                job.key_tiles + key0 * job.dim, to);
      const Edges edges = EdgesOf(band, r);
      for (size_t i = 0; i < kQuads; ++i)
        Store(Within(Load(to + i * kLanes), i, edges.first, edges.last, Set(kNever)), to + i * kLanes);
    }
  }
  if (recall.topk > 0) {
    values.resize(TopK::Room(recall.topk));
    positions.resize(TopK::Room(recall.topk));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = row0 + r, first = start[t];
      if (t - first < recall.topk) continue;
      TopK best;
      best.Reset(recall.topk, values.data(), positions.data());
      for (int64_t key0 = first / kTile * kTile; key0 <= t; key0 += kTile) {
        std::copy_n(scores + r * ld + key0, kTile, s.tile);
        Rank({first, t, first + recall.sinks, t - recall.window + 1}, key0, s.tile);
        best.Push(s.tile, static_cast<int32_t>(key0));
      }
      best.Finish();
      double chosen = 0, heaviest = 0;
      for (int64_t i = 0; i < best.count(); ++i) chosen += p[r * ld + best.positions()[i]];
      best.Reset(recall.topk, values.data(), positions.data());
      for (int64_t key0 = first / kTile * kTile; key0 <= t; key0 += kTile) {
        std::copy_n(p + r * ld + key0, kTile, s.tile);
        Rank({first, t, first, t + 1}, key0, s.tile);
        best.Push(s.tile, static_cast<int32_t>(key0));
      }
      best.Finish();
      for (int64_t i = 0; i < best.count(); ++i) heaviest += best.values()[i];
      recall.recall[t] = static_cast<float>(chosen), recall.best[t] = static_cast<float>(heaviest);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float kl = LossOfRow(scores + r * ld + first_tile, p + r * ld + first_tile, columns, job.coefficient);
    const bool counted = row0 + r > start[row0 + r];
    job.kl[row0 + r] = counted ? kl : 0.0f;
    if (!counted) std::fill_n(scores + r * ld + first_tile, columns, 0.0f);
  }
  if (job.coefficient == 0) return;

  for (int64_t j = 0; j < heads; ++j) {
    const Rows q{job.q + row0 * job.q_stride + j * job.dim, job.q_stride};
    Transpose(q, rows, job.dim, 1.0f, s.qt + j * job.dim * kTile);
    CopyRows(q, rows, job.dim, padded, 1.0f, s.q + j * kTile * padded);
  }
  std::fill_n(s.dq, heads * kTile * padded, 0.0f);
  std::fill_n(job.dw + row0 * heads, rows * heads, 0.0f);
  for (int64_t key0 = first_tile; key0 < end; key0 += kTile) {
    const Band band{start + row0, key0, row0 - key0, rows, std::min(kTile, length - key0)};
    for (int64_t j = 0; j < heads; ++j) {
      Multiply<Into::set, Order::columns>(
          {s.qt + j * job.dim * kTile, job.key_tiles + key0 * job.dim, kTile, s.tile, kTile}, rows,
          ScoreRange{band, job.dim});
      for (int64_t r = 0; r < rows; ++r) {
        const F16 weight = Set(job.w[(row0 + r) * job.w_stride + j]);
        const Edges edges = EdgesOf(band, r);
        F16 sum = Zero();
        for (size_t i = 0; i < kQuads; ++i) {
          // Where a pair is no candidate the product may not have been written.
          const F16 a = Within(Load(s.tile + r * kTile + i * kLanes), i, edges.first, edges.last, Zero());
          const F16 d = Load(scores + r * ld + key0 + i * kLanes);
          const M16 on = Gt(a, Zero());
          sum = sum + IfThenElseZero(on, a * d);
          Store(IfThenElseZero(on, d * weight), s.gradient + r * kTile + i * kLanes);
        }
        job.dw[(row0 + r) * heads + j] += ReduceSum(sum);
      }
      Multiply<Into::add, Order::rows>(
          {s.gradient, job.keys + key0 * padded, padded, s.dq + j * kTile * padded, padded}, rows,
          QueryRange{band, padded});
      Multiply<Into::add, Order::columns>(
          {s.gradient, s.q + j * kTile * padded, padded, job.dk + key0 * padded, padded}, band.keys,
          KeyRange{band, padded});
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < heads; ++j) {
      const float* from = s.dq + (j * kTile + r) * padded;
      float* to = job.dq + ((row0 + r) * heads + j) * job.dim;
      ForColumns(job.dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c), to + c, part); });
    }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(AddListedMass);
HWY_EXPORT(ListedShare);
HWY_EXPORT(Normalise);
HWY_EXPORT(ListedLoss);
HWY_EXPORT(DenseBlock);

void index_listed_mass(const ListedMass& job, int64_t begin, int64_t end, float* mass, int64_t ld) {
  HWY_DYNAMIC_DISPATCH(AddListedMass)(job, begin, end, mass, ld);
}
void index_listed_share(const ListedMass& job, int64_t begin, int64_t end, float* share, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(ListedShare)(job, begin, end, share, stride);
}
void index_normalise(const float* mass, int64_t rows, int64_t ld, const int32_t* count, float weight, bool add,
                     float* p) {
  HWY_DYNAMIC_DISPATCH(Normalise)(mass, rows, ld, count, weight, add, p);
}
void index_listed_loss(const IndexerRows& job, const int32_t* selected, const int32_t* count, int64_t width,
                       const float* p, int64_t ld, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(ListedLoss)(job, selected, count, width, p, ld, begin, end);
}
void index_dense_block(const IndexerRows& job, const DenseMass* sources, int64_t source_count,
                       const DenseRecall& recall, int64_t length, int64_t block, float* strips, int64_t ld) {
  HWY_DYNAMIC_DISPATCH(DenseBlock)(job, sources, source_count, recall, length, block, strips, ld);
}

}  // namespace cairn::kernels
#endif
