#include "models/kernels/cpu/simd_experts.h"

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_experts.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_activation_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

// act(gate) * up
template <class Act>
struct Plain {
  explicit Plain(const GatedTile&) {}
  HWY_INLINE F16 Value(F16 gate, F16 up) const { return Act::Value(gate) * up; }
  struct Slopes {
    F16 value, dgate, dup;
  };
  HWY_INLINE Slopes All(F16 gate, F16 up) const {
    const Both act = Act::ValueAndSlope(gate);
    return {act.value * up, up * act.slope, act.value};
  }
};

// (up + 1) * gate * sigmoid(alpha * gate); a clamped element has no slope.
struct Clamped {
  F16 alpha, limit, floor;
  explicit Clamped(const GatedTile& t) : alpha(Set(t.alpha)), limit(Set(t.limit)), floor(Set(-t.limit)) {}
  HWY_INLINE F16 Value(F16 gate, F16 up) const {
    const F16 g = Min(limit, gate), u = Max(floor, Min(limit, up));  // this order lets NaN pass
    return (u + Set(1.0f)) * (g * Sigmoid(alpha * g));
  }
  HWY_INLINE Plain<Silu>::Slopes All(F16 gate, F16 up) const {
    const F16 g = Min(limit, gate), u = Max(floor, Min(limit, up)) + Set(1.0f);
    const F16 s = Sigmoid(alpha * g), glu = g * s;
    const F16 slope = MulAdd(alpha * glu, Set(1.0f) - s, s);
    return {u * glu, IfThenZeroElse(Gt(gate, limit), u * slope), IfThenZeroElse(Gt(Abs(up), limit), glu)};
  }
};

template <class Gate>
HWY_INLINE void Tile(const GatedTile& t) {
  const Gate gate_of(t);
  const int64_t F = t.columns;
  for (int64_t r = 0; r < t.rows; ++r) {
    float *gate = t.gate_up + r * 2 * F, *up = gate + F, *h = t.h + r * F;
    if (t.dh == nullptr) {
      ForColumns(F, [&](size_t i, auto part)
                        CAIRN_LAMBDA { Store(gate_of.Value(Load(gate + i, part), Load(up + i, part)), h + i, part); });
      continue;
    }
    const float* dh = t.dh + r * F;
    const F16 weight = Set(t.weight[r]);
    F16 dots = Zero();
    ForColumns(F, [&](size_t i, auto part) CAIRN_LAMBDA {
      const F16 d = Load(dh + i, part);
      const auto all = gate_of.All(Load(gate + i, part), Load(up + i, part));
      dots = MulAdd(d, all.value, dots);
      const F16 weighted = d * weight;
      Store(all.value * weight, h + i, part);
      Store(weighted * all.dgate, gate + i, part);
      Store(weighted * all.dup, up + i, part);
    });
    t.dot[r] = ReduceSum(dots);
  }
}

void GatedTileRun(const GatedTile& tile) {
  constexpr void (*kTable[])(const GatedTile&) = {Tile<Clamped>,         Tile<Plain<Silu>>, Tile<Plain<Gelu>>,
                                                  Tile<Plain<GeluTanh>>, Tile<Plain<Relu>>, Tile<Plain<Relu2>>};
  kTable[tile.kind + 1](tile);
}

void CombineRows(const float* rows, int64_t width, const int32_t* place, const float* weight, int64_t slots, float* y,
                 int64_t begin, int64_t end) {
  constexpr int64_t kMost = 64;
  for (int64_t n = begin; n < end; ++n) {
    // In runs of at most kMost slots.
    for (int64_t j0 = 0; j0 < slots; j0 += kMost) {
      const float* from[kMost];
      float by[kMost];
      int64_t count = 0;
      for (int64_t j = n * slots + j0; j < n * slots + std::min(j0 + kMost, slots); ++j) {
        if (place[j] < 0) continue;
        from[count] = rows + place[j] * width;
        by[count++] = weight != nullptr ? weight[j] : 1.0f;
      }
      ForColumns(width, [&](size_t i, auto part) CAIRN_LAMBDA {
        F16 sum = j0 == 0 ? Zero() : Load(y + n * width + i, part);
        for (int64_t j = 0; j < count; ++j) sum = MulAdd(Load(from[j] + i, part), Set(by[j]), sum);
        Store(sum, y + n * width + i, part);
      });
    }
  }
}

float DotRows(const float* a, const float* b, int64_t n) {
  F16 sum = Zero();
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA { sum = MulAdd(Load(a + i, part), Load(b + i, part), sum); });
  return ReduceSum(sum);
}

void AddRow(float weight, const float* from, float* to, int64_t n) {
  const F16 factor = Set(weight);
  ForColumns(n, [&](size_t i, auto part)
                    CAIRN_LAMBDA { Store(MulAdd(Load(from + i, part), factor, Load(to + i, part)), to + i, part); });
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(GatedTileRun);
HWY_EXPORT(CombineRows);
HWY_EXPORT(DotRows);
HWY_EXPORT(AddRow);

void gated_tile(const GatedTile& tile) { HWY_DYNAMIC_DISPATCH(GatedTileRun)(tile); }
void combine_rows(const float* rows, int64_t width, const int32_t* place, const float* weight, int64_t slots, float* y,
                  int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(CombineRows)(rows, width, place, weight, slots, y, begin, end);
}
float dot_rows(const float* a, const float* b, int64_t n) { return HWY_DYNAMIC_DISPATCH(DotRows)(a, b, n); }
void add_row(float weight, const float* from, float* to, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddRow)(weight, from, to, n);
}

}  // namespace cairn::kernels
#endif
