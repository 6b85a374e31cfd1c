#include "models/kernels/cpu/simd_sparse_attention.h"

#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_sparse_attention.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"
#include "models/kernels/cpu/simd_gather_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

HWY_INLINE int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

// Scratch that begins on a line of the cache.
HWY_INLINE float* Aligned(std::vector<float>& memory, int64_t floats) {
  memory.resize(floats + 16);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float) % 16;
}

// `count` rows of `dim` -> [count, padded], zeros after the last feature.
HWY_INLINE void PadRows(Rows rows, int64_t count, int64_t dim, int64_t padded, float scale, float* to, int64_t ldt) {
  const F16 s = Set(scale);
  for (int64_t r = 0; r < count; ++r) {
    const float* from = rows.data + r * rows.stride;
    float* row = to + r * ldt;
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c, part) * s, row + c); });
  }
}

void PackKeysAndValues(const SparseCall& call, Rows k, Rows v, int64_t count, float* packed) {
  PadRows(k, count, call.key_dim, call.keys, 1.0f, packed, call.row());
  PadRows(v, count, call.value_dim, call.values, 1.0f, packed + call.keys, call.row());
}

void SparseForwardRows(const SparseCall& call, const SparseForward& job, int64_t begin, int64_t end) {
  static thread_local std::vector<float> memory;
  const int64_t group = call.group, ld = RoundUp16(call.width) + 16;
  float* q = Aligned(memory, group * (call.keys + ld + call.values));
  float *scores = q + group * call.keys, *sums = scores + group * ld;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t count = job.count[t];
    const Listed list{job.packed, call.row(), job.selected + t * call.width, count};
    PadRows({job.q.data + t * job.q.stride, call.key_dim}, group, call.key_dim, call.keys, call.q_scale, q, call.keys);
    for (int64_t i = 0; i < count; i += kListTile) {
      const Listed tile{list.rows, list.stride, list.index + i, std::min(kListTile, count - i)};
      Dots(q, call.keys, group, tile, call.keys, scores + i, ld);
    }
    std::fill_n(sums, group * call.values, 0.0f);
    float* out = job.out + t * job.out_stride;
    alignas(64) float total[kLanes], most[kLanes];
    for (int64_t g = 0; g < group; ++g) {
      float* s = scores + g * ld;
      Store(Set(kNothing), s + count);  // the last vector's rest
      F16 maximum = Set(kNothing);
      for (int64_t i = 0; i < count; i += kLanes) maximum = Max(maximum, Load(s + i));
      const float m = ReduceMax(maximum);
      const F16 base = Set(m == kNothing ? 0.0f : m);
      F16 sum = Zero();
      for (int64_t i = 0; i < count; i += kLanes) {
        const F16 p = Exp2(Load(s + i) - base);
        Store(p, s + i);
        sum = sum + p;
      }
      total[g % kLanes] = ReduceSum(sum), most[g % kLanes] = m;
      if (g % kLanes == kLanes - 1 || g == group - 1) {
        // Natural logarithms of up to 16 heads at once.
        const int64_t first = g / kLanes * kLanes;
        alignas(64) float lse[kLanes];
        Store(MulAdd(Load(most), Set(0.693147181f), Log(Load(total))), lse);
        for (int64_t h = first; h <= g; ++h) job.lse[h * job.lse_stride + t] = count > 0 ? lse[h - first] : kNothing;
      }
      // Probabilities are divided by their sum at the end, with the output.
      scores[g * ld + ld - 1] = total[g % kLanes];
    }
    for (int64_t i = 0; i < count; i += kListTile) {
      const Listed tile{list.rows + call.keys, list.stride, list.index + i, std::min(kListTile, count - i)};
      AddWeighted(scores + i, ld, group, tile, call.values, sums, call.values);
    }
    for (int64_t g = 0; g < group; ++g) {
      const F16 divisor = Set(count > 0 ? scores[g * ld + ld - 1] : 1.0f);
      const float* from = sums + g * call.values;
      float* to = out + g * call.value_dim;
      ForColumns(call.value_dim,
                 [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c) / divisor, to + c, part); });
    }
  }
}

void SparseBackwardRows(const SparseCall& call, const SparseBackward& job, int64_t block, int64_t begin, int64_t end) {
  static thread_local std::vector<float> memory;
  constexpr int64_t kLd = kListTile + 16;
  const int64_t group = call.group;
  float* q = Aligned(memory, group * (2 * call.keys + call.values + 2 * kLd + 2));
  float *dq = q + group * call.keys, *dout = dq + group * call.keys, *p = dout + group * call.values,
        *ds = p + group * kLd, *lse = ds + group * kLd, *delta = lse + group;
  for (int64_t t = begin; t < end; ++t) {
    const int32_t* splits = job.splits + t * (job.blocks + 1);
    const int64_t first = splits[block], last = splits[block + 1];
    if (first == last && block > 0) continue;
    const Rows q_rows{job.q.data + t * job.q.stride, call.key_dim},
        dout_rows{job.dout.data + t * job.dout.stride, call.value_dim};
    PadRows(q_rows, group, call.key_dim, call.keys, call.q_scale, q, call.keys);
    PadRows(dout_rows, group, call.value_dim, call.values, 1.0f, dout, call.values);
    std::fill_n(dq, group * call.keys, 0.0f);
    for (int64_t g = 0; g < group; ++g) {
      const float *o = job.out.data + t * job.out.stride + g * call.value_dim, *d = dout + g * call.values;
      F16 sum = Zero();
      ForColumns(call.value_dim,
                 [&](size_t c, auto part) CAIRN_LAMBDA { sum = MulAdd(Load(o + c, part), Load(d + c), sum); });
      delta[g] = ReduceSum(sum);
      lse[g] = job.lse[g * job.lse_stride + t] * 1.44269504f;
    }
    for (int64_t i = first; i < last; i += kListTile) {
      const int64_t count = std::min(kListTile, last - i);
      const int32_t* index = job.selected + t * call.width + i;
      const Listed keys{job.packed, call.row(), index, count}, values{job.packed + call.keys, call.row(), index, count};
      Dots(q, call.keys, group, keys, call.keys, p, kLd);
      Dots(dout, call.values, group, values, call.values, ds, kLd);
      for (int64_t g = 0; g < group; ++g) {
        const F16 base = Set(lse[g]), offset = Set(delta[g]);
        float *p_row = p + g * kLd, *ds_row = ds + g * kLd;
        for (int64_t c = 0; c < count; c += kLanes) {  // what stands after the last entry is not read
          const F16 prob = Exp2(Load(p_row + c) - base);
          Store(prob, p_row + c);
          Store(prob * (Load(ds_row + c) - offset), ds_row + c);
        }
      }
      AddWeighted(ds, kLd, group, keys, call.keys, dq, call.keys);
      Scatter(ds, kLd, group, q, call.keys, call.keys, keys, job.sums);
      Scatter(p, kLd, group, dout, call.values, call.values, values, job.sums + call.keys);
    }
    const F16 scale = Set(call.dq_scale);
    for (int64_t g = 0; g < group; ++g) {
      const float* from = dq + g * call.keys;
      float* to = job.dq + t * job.dq_stride + g * call.key_dim;
      ForColumns(call.key_dim, [&](size_t c, auto part) CAIRN_LAMBDA {
        const F16 old = block > 0 ? Load(to + c, part) : Zero();
        Store(MulAdd(Load(from + c), scale, old), to + c, part);
      });
    }
  }
}

void JoinPieces(const SparseCall& call, const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin,
                int64_t end, float* dk, int64_t dk_stride, float* dv, int64_t dv_stride) {
  const auto join = [&](const float* from, int64_t dim, float scale, float* to) CAIRN_LAMBDA {
    const F16 factor = Set(scale);
    ForColumns(dim, [&](size_t c, auto part) CAIRN_LAMBDA {
      F16 sum = Load(from + c);
      for (int64_t p = 1; p < pieces; ++p) sum = sum + Load(from + p * piece_stride + c);
      Store(sum * factor, to + c, part);
    });
  };
  for (int64_t r = begin; r < end; ++r) {
    join(sums + r * call.row(), call.key_dim, call.dk_scale, dk + r * dk_stride);
    join(sums + r * call.row() + call.keys, call.value_dim, 1.0f, dv + r * dv_stride);
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(PackKeysAndValues);
HWY_EXPORT(SparseForwardRows);
HWY_EXPORT(SparseBackwardRows);
HWY_EXPORT(JoinPieces);

void sparse_pack(const SparseCall& call, Rows k, Rows v, int64_t count, float* packed) {
  HWY_DYNAMIC_DISPATCH(PackKeysAndValues)(call, k, v, count, packed);
}
void sparse_forward_rows(const SparseCall& call, const SparseForward& job, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(SparseForwardRows)(call, job, begin, end);
}
void sparse_backward_rows(const SparseCall& call, const SparseBackward& job, int64_t block, int64_t begin,
                          int64_t end) {
  HWY_DYNAMIC_DISPATCH(SparseBackwardRows)(call, job, block, begin, end);
}
void sparse_join(const SparseCall& call, const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin,
                 int64_t end, float* dk, int64_t dk_stride, float* dv, int64_t dv_stride) {
  HWY_DYNAMIC_DISPATCH(JoinPieces)(call, sums, pieces, piece_stride, begin, end, dk, dk_stride, dv, dv_stride);
}

}  // namespace cairn::kernels
#endif
