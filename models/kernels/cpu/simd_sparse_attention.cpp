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

// Asks for what a later row will read: rows of one head lie far from one another.
HWY_INLINE void Fetch(const float* from, int64_t floats) {
  for (int64_t i = 0; i < floats; i += kLanes) __builtin_prefetch(from + i);
}
constexpr int64_t kAhead = 3;  // rows

// f(row, first entry, last entry) for the entries of every row that stand in a key block, block by block: what all rows
// read and write lies near meanwhile.
template <class Job, class F>
HWY_INLINE void ForBlocks(const SparseCall& call, const Job& job, int64_t begin, int64_t end, F f) {
  for (int64_t block = 0; block < job.blocks; ++block)
    for (int64_t t = std::max(begin, block * job.block_rows); t < end; ++t) {
      const int32_t* splits = job.splits + t * (job.blocks + 1) + block;
      if (t + kAhead < end) {  // a row's part of a block stands apart from the next row's
        const int32_t* ahead = splits + kAhead * (job.blocks + 1);
        const int32_t* list = job.selected + (t + kAhead) * call.width;
        for (int64_t i = ahead[0]; i < ahead[1]; i += kLanes) __builtin_prefetch(list + i);
      }
      if (splits[0] < splits[1]) f(t, int64_t{splits[0]}, int64_t{splits[1]});
    }
}

// Joins a part of a row's softmax with what came before: maximum (log2), sum, and values that are not yet divided.
struct Softmax {
  float most, total;
};
HWY_INLINE void JoinPart(Softmax& state, Softmax part, const float* values, int64_t dim, float* sums) {
  if (state.most == kNothing) {
    state = part;
    for (int64_t c = 0; c < dim; c += kLanes) Store(Load(values + c), sums + c);
    return;
  }
  const F16 most = Set(std::max(state.most, part.most));
  const F16 alpha = Exp2(Set(state.most) - most), beta = Exp2(Set(part.most) - most);
  state.most = hn::GetLane(most.v[0]);
  state.total = hn::GetLane(MulAdd(Set(part.total), beta, Set(state.total) * alpha).v[0]);
  for (int64_t c = 0; c < dim; c += kLanes) Store(MulAdd(Load(values + c), beta, Load(sums + c) * alpha), sums + c);
}

// Scores in units of log2, with room for 16 more -> probabilities that are not yet divided by their sum.
HWY_INLINE Softmax SoftmaxPart(float* s, int64_t count) {
  Store(Set(kNothing), s + count);  // the last vector's rest
  F16 maximum = Load(s);
  for (int64_t i = kLanes; i < count; i += kLanes) maximum = Max(maximum, Load(s + i));
  const float most = ReduceMax(maximum);
  const F16 base = Set(most == kNothing ? 0.0f : most);
  F16 sum = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const F16 p = Exp2(Load(s + i) - base);
    Store(p, s + i);
    sum = sum + p;
  }
  return {most, ReduceSum(sum)};
}

void SparseForwardRows(const SparseCall& call, const SparseForward& job, int64_t begin, int64_t end) {
  static thread_local std::vector<float> memory;
  static thread_local std::vector<Softmax> states, heads;
  // A line: one head of one row, its query and the sum of its values.
  const int64_t group = call.group, lines = (end - begin) * group, line = call.row();
  const int64_t ld = RoundUp16(call.width) + 16;
  float* q = Aligned(memory, lines * line + group * (ld + call.values));
  float *scores = q + lines * line, *part = scores + group * ld;
  states.assign(lines, {kNothing, 0.0f});
  heads.resize(group);
  for (int64_t t = begin; t < end; ++t) {
    const float* from = job.q.data + t * job.q.stride;
    if (t + kAhead < end) Fetch(from + kAhead * job.q.stride, group * call.key_dim);
    PadRows({from, call.key_dim}, group, call.key_dim, call.keys, call.q_scale, q + (t - begin) * group * line, line);
    if (job.count[t] > 0) continue;
    for (int64_t g = 0; g < group; ++g)
      std::fill_n(q + ((t - begin) * group + g) * line + call.keys, call.values, 0.0f);
  }
  ForBlocks(call, job, begin, end, [&](int64_t t, int64_t first, int64_t last) CAIRN_LAMBDA {
    const int32_t* index = job.selected + t * call.width + first;
    const int64_t count = last - first;
    float* own = q + (t - begin) * group * line;
    for (int64_t i = 0; i < count; i += kListTile)
      Dots(own, line, group, Listed{job.packed, call.row(), index + i, std::min(kListTile, count - i)}, call.keys,
           scores + i, ld);
    std::fill_n(part, group * call.values, 0.0f);
    for (int64_t g = 0; g < group; ++g) heads[g] = SoftmaxPart(scores + g * ld, count);
    for (int64_t i = 0; i < count; i += kListTile)
      AddWeighted(scores + i, ld, group,
                  Listed{job.packed + call.keys, call.row(), index + i, std::min(kListTile, count - i)}, call.values,
                  part, call.values);
    for (int64_t g = 0; g < group; ++g)
      JoinPart(states[(t - begin) * group + g], heads[g], part + g * call.values, call.values,
               own + g * line + call.keys);
  });
  for (int64_t i = 0; i < lines; ++i) {
    const int64_t t = begin + i / group, g = i % group;
    const bool any = job.count[t] > 0;
    const F16 divisor = Set(any ? states[i].total : 1.0f);
    const float* from = q + i * line + call.keys;
    float* to = job.out + t * job.out_stride + g * call.value_dim;
    ForColumns(call.value_dim,
               [&](size_t c, auto some) CAIRN_LAMBDA { Store(Load(from + c) / divisor, to + c, some); });
  }
  // Natural logarithms of sixteen lines at once.
  for (int64_t first = 0; first < lines; first += kLanes) {
    const int64_t last = std::min<int64_t>(first + kLanes, lines);
    alignas(64) float most[kLanes], total[kLanes], lse[kLanes];
    for (int64_t i = 0; i < static_cast<int64_t>(kLanes); ++i) {
      most[i] = states[std::min(first + i, last - 1)].most;
      total[i] = states[std::min(first + i, last - 1)].total;
    }
    Store(MulAdd(Load(most), Set(0.693147181f), Log(Load(total))), lse);
    for (int64_t i = first; i < last; ++i) {
      const int64_t t = begin + i / group;
      job.lse[i % group * job.lse_stride + t] = job.count[t] > 0 ? lse[i - first] : kNothing;
    }
  }
}

void SparseBackwardRows(const SparseCall& call, const SparseBackward& job, int64_t begin, int64_t end) {
  static thread_local std::vector<float> memory;
  constexpr int64_t kLd = kListTile + 16;
  // A line: one head of one row, its query, the gradient of its output, the gradient of its query.
  const int64_t group = call.group, lines = (end - begin) * group, line = call.row() + call.keys;
  float* q = Aligned(memory, lines * (line + 2) + 2 * group * kLd);
  float *p = q + lines * line, *ds = p + group * kLd, *lse = ds + group * kLd, *delta = lse + lines;
  for (int64_t t = begin; t < end; ++t) {
    const float *q_row = job.q.data + t * job.q.stride, *dout_row = job.dout.data + t * job.dout.stride,
                *out_row = job.out.data + t * job.out.stride;
    if (t + kAhead < end) {
      Fetch(q_row + kAhead * job.q.stride, group * call.key_dim);
      Fetch(dout_row + kAhead * job.dout.stride, group * call.value_dim);
      Fetch(out_row + kAhead * job.out.stride, group * call.value_dim);
    }
    float* own = q + (t - begin) * group * line;
    PadRows({q_row, call.key_dim}, group, call.key_dim, call.keys, call.q_scale, own, line);
    PadRows({dout_row, call.value_dim}, group, call.value_dim, call.values, 1.0f, own + call.keys, line);
    for (int64_t g = 0; g < group; ++g) {
      const float *o = out_row + g * call.value_dim, *d = own + g * line + call.keys;
      F16 sum = Zero();
      ForColumns(call.value_dim,
                 [&](size_t c, auto part) CAIRN_LAMBDA { sum = MulAdd(Load(o + c, part), Load(d + c), sum); });
      delta[(t - begin) * group + g] = ReduceSum(sum);
      lse[(t - begin) * group + g] = job.lse[g * job.lse_stride + t] * 1.44269504f;
      std::fill_n(own + g * line + call.row(), call.keys, 0.0f);
    }
  }
  ForBlocks(call, job, begin, end, [&](int64_t t, int64_t first, int64_t last) CAIRN_LAMBDA {
    float* own = q + (t - begin) * group * line;
    for (int64_t i = first; i < last; i += kListTile) {
      const int64_t count = std::min(kListTile, last - i);
      const int32_t* index = job.selected + t * call.width + i;
      const Listed keys{job.packed, call.row(), index, count}, values{job.packed + call.keys, call.row(), index, count};
      Dots(own, line, group, keys, call.keys, p, kLd);
      Dots(own + call.keys, line, group, values, call.values, ds, kLd);
      for (int64_t g = 0; g < group; ++g) {
        const F16 base = Set(lse[(t - begin) * group + g]), offset = Set(delta[(t - begin) * group + g]);
        float *p_row = p + g * kLd, *ds_row = ds + g * kLd;
        for (int64_t c = 0; c < count; c += kLanes) {  // what stands after the last entry is not read
          const F16 prob = Exp2(Load(p_row + c) - base);
          Store(prob, p_row + c);
          Store(prob * (Load(ds_row + c) - offset), ds_row + c);
        }
      }
      AddWeighted(ds, kLd, group, keys, call.keys, own + call.row(), line);
      if (group == 1 && ScatterBoth(ds, p, own, call.keys, call.values, keys, job.sums)) continue;
      Scatter(ds, kLd, group, own, line, call.keys, keys, job.sums);
      Scatter(p, kLd, group, own + call.keys, line, call.values, values, job.sums + call.keys);
    }
  });
  const F16 scale = Set(call.dq_scale);
  for (int64_t i = 0; i < lines; ++i) {
    const float* from = q + i * line + call.row();
    float* to = job.dq + (begin + i / group) * job.dq_stride + i % group * call.key_dim;
    ForColumns(call.key_dim, [&](size_t c, auto part) CAIRN_LAMBDA { Store(Load(from + c) * scale, to + c, part); });
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
void sparse_backward_rows(const SparseCall& call, const SparseBackward& job, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(SparseBackwardRows)(call, job, begin, end);
}
void sparse_join(const SparseCall& call, const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin,
                 int64_t end, float* dk, int64_t dk_stride, float* dv, int64_t dv_stride) {
  HWY_DYNAMIC_DISPATCH(JoinPieces)(call, sums, pieces, piece_stride, begin, end, dk, dk_stride, dv, dv_stride);
}

}  // namespace cairn::kernels
#endif
