#include "models/kernels/cpu/simd_router.h"

#include <cmath>
#include <vector>

#include "models/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "models/kernels/cpu/simd_router.cpp"
#include "hwy/foreach_target.h"
#include "models/kernels/cpu/simd_attention_inl.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::HWY_NAMESPACE {

constexpr int kSigmoid = 1, kSoftmaxTopk = 2;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The k largest of value[0, n), largest first, of equal ones the lower index first. NaN is never chosen: the slots that
// are left get the lowest indices.
HWY_INLINE void Best(const float* value, int64_t n, int64_t k, int32_t* index, float* best) {
  for (int64_t j = 0; j < k; ++j) index[j] = -1, best[j] = kNothing;
  for (int64_t i = 0; i < n; ++i) {
    if (!(value[i] > best[k - 1])) continue;
    int64_t j = k - 1;
    for (; j > 0 && value[i] > best[j - 1]; --j) best[j] = best[j - 1], index[j] = index[j - 1];
    best[j] = value[i], index[j] = static_cast<int32_t>(i);
  }
  for (int64_t j = 0; j < k; ++j) {
    for (int32_t free = 0; index[j] < 0; ++free) {
      bool taken = false;
      for (int64_t i = 0; i < k; ++i) taken = taken || index[i] == free;
      if (!taken) index[j] = free;
    }
  }
}

// Softmax of n numbers; returns the log of the sum of their exponentials.
HWY_INLINE float Softmax(const float* x, int64_t n, float* p) {
  F16 most = Set(kNothing);
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA { most = Max(most, Load(x + i, part, Set(kNothing))); });
  const float maximum = ReduceMax(most);
  F16 sum = Zero();
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA {
    const F16 e = Exp(Load(x + i, part, Set(kNothing)) - Set(maximum));
    sum = sum + e;
    Store(e, p + i, part);
  });
  const float total = ReduceSum(sum);
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA { Store(Load(p + i, part) / Set(total), p + i, part); });
  return maximum + std::log(total);
}

// Entropy of x / sum of x: log S - (sum of x log x) / S.
HWY_INLINE float Entropy(const float* x, int64_t n) {
  F16 sums = Zero(), logs = Zero();
  ForColumns(n, [&](size_t i, auto part) CAIRN_LAMBDA {
    const F16 a = Load(x + i, part);
    sums = sums + a;
    logs = MulAdd(a, Log(Max(Set(1e-30f), a)), logs);
  });
  const float sum = ReduceSum(sums);
  return std::log(sum) - ReduceSum(logs) / sum;
}

void RouteRows(const RouteJob& job, int64_t begin, int64_t end) {
  const int64_t E = job.experts, k = job.topk, width = E / job.groups;
  std::vector<float> choice(E), best(k + job.topk_groups), group(job.groups);
  std::vector<int32_t> groups(job.topk_groups);
  std::vector<char> allowed(job.groups);
  for (int64_t n = begin; n < end; ++n) {
    const float* logits = job.logits + n * E;
    float *scores = job.scores + n * E, *weights = job.weights + n * k;
    int32_t* chosen = job.chosen + n * k;
    job.lse[n] = Softmax(logits, E, scores);
    if (job.scoring == kSigmoid)
      ForColumns(E,
                 [&](size_t i, auto part) CAIRN_LAMBDA { Store(Sigmoid(Load(logits + i, part)), scores + i, part); });
    job.entropy[n] = Entropy(scores, E);
    const float* from = job.scoring == kSoftmaxTopk ? logits : scores;
    for (int64_t e = 0; e < E; ++e) choice[e] = job.bias != nullptr ? from[e] + job.bias[e] : from[e];
    if (job.groups > 1) {
      for (int64_t g = 0; g < job.groups; ++g) {
        int32_t two[2];
        float value[2];
        Best(choice.data() + g * width, width, 2, two, value);
        group[g] = value[0] + value[1];
      }
      Best(group.data(), job.groups, job.topk_groups, groups.data(), best.data());
      std::fill(allowed.begin(), allowed.end(), 0);
      for (int32_t g : groups) allowed[g] = 1;
      for (int64_t e = 0; e < E; ++e) choice[e] = allowed[e / width] ? choice[e] : kNothing;
    }
    Best(choice.data(), E, k, chosen, best.data());
    if (job.scoring == kSoftmaxTopk) {
      for (int64_t j = 0; j < k; ++j) best[j] = logits[chosen[j]];
      Softmax(best.data(), k, weights);
      for (int64_t j = 0; j < k; ++j) weights[j] *= job.scale;
      continue;
    }
    float sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += scores[chosen[j]];
    if (job.scoring == kSigmoid) sum += 1e-20f;
    const float factor = job.normalise ? job.scale / sum : job.scale;
    for (int64_t j = 0; j < k; ++j) weights[j] = scores[chosen[j]] * factor;
  }
}

void RouteRowsBackward(const RouteJob& job, int64_t begin, int64_t end) {
  const int64_t E = job.experts, k = job.topk;
  std::vector<float> probabilities(E);
  for (int64_t n = begin; n < end; ++n) {
    const float *scores = job.scores + n * E, *weights = job.weights + n * k, *dweights = job.dweights + n * k;
    const int32_t* chosen = job.chosen + n * k;
    const float* balance = job.balance != nullptr ? job.balance + n / job.sequence_rows * E : nullptr;
    float* d = job.dlogits + n * E;  // first the gradient of the scores, then of the logits
    const bool sigmoid = job.scoring == kSigmoid;

    // What the losses of balance say of the scores.
    if (balance != nullptr && sigmoid) {
      F16 sums = Zero(), dots = Zero();
      ForColumns(E, [&](size_t i, auto part) CAIRN_LAMBDA {
        const F16 s = Load(scores + i, part);
        sums = sums + s;
        dots = MulAdd(s, Load(balance + i, part), dots);
      });
      const float sum = ReduceSum(sums);
      const F16 mean = Set(ReduceSum(dots) / sum), divisor = Set(sum);
      ForColumns(
          E, [&](size_t i, auto part) CAIRN_LAMBDA { Store((Load(balance + i, part) - mean) / divisor, d + i, part); });
    } else {
      for (int64_t e = 0; e < E; ++e) d[e] = balance != nullptr ? balance[e] : 0.0f;
    }

    // What the weights of the chosen say of them.
    float dot = 0, sum = 0;
    for (int64_t j = 0; j < k; ++j) dot += dweights[j] * weights[j], sum += scores[chosen[j]];
    if (job.scoring != kSoftmaxTopk) {
      if (sigmoid) sum += 1e-20f;
      for (int64_t j = 0; j < k; ++j)
        d[chosen[j]] += job.normalise ? (dweights[j] * job.scale - dot) / sum : dweights[j] * job.scale;
    }

    // Through the scores to the logits.
    const float* p = scores;
    if (sigmoid) {
      ForColumns(E, [&](size_t i, auto part) CAIRN_LAMBDA {
        const F16 s = Load(scores + i, part);
        Store(Load(d + i, part) * s * (Set(1.0f) - s), d + i, part);
      });
      if (job.z != 0) {
        const float* logits = job.logits + n * E;
        const F16 lse = Set(job.lse[n]);
        ForColumns(E, [&](size_t i, auto part)
                          CAIRN_LAMBDA { Store(Exp(Load(logits + i, part) - lse), probabilities.data() + i, part); });
        p = probabilities.data();
      }
    } else if (job.scoring != kSoftmaxTopk || balance != nullptr) {
      F16 dots = Zero();
      ForColumns(
          E, [&](size_t i, auto part) CAIRN_LAMBDA { dots = MulAdd(Load(d + i, part), Load(scores + i, part), dots); });
      const F16 mean = Set(ReduceSum(dots));
      ForColumns(E, [&](size_t i, auto part)
                        CAIRN_LAMBDA { Store((Load(d + i, part) - mean) * Load(scores + i, part), d + i, part); });
    }
    if (job.scoring == kSoftmaxTopk) {
      for (int64_t j = 0; j < k; ++j) d[chosen[j]] += weights[j] * (dweights[j] - dot / job.scale);
    }
    if (job.z != 0) {
      const F16 factor = Set(2 * job.z * job.lse[n]);
      ForColumns(E, [&](size_t i, auto part)
                        CAIRN_LAMBDA { Store(MulAdd(Load(p + i, part), factor, Load(d + i, part)), d + i, part); });
    }
  }
}

}  // namespace cairn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::kernels {

HWY_EXPORT(RouteRows);
HWY_EXPORT(RouteRowsBackward);

void route_rows(const RouteJob& job, int64_t begin, int64_t end) { HWY_DYNAMIC_DISPATCH(RouteRows)(job, begin, end); }
void route_rows_backward(const RouteJob& job, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(RouteRowsBackward)(job, begin, end);
}

}  // namespace cairn::kernels
#endif
