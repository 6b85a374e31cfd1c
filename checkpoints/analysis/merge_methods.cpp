// The methods of merging: formulas.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <stdexcept>

#include "checkpoints/analysis/elements.h"
#include "checkpoints/analysis/merge.h"

namespace cairn::checkpoints {
namespace {

using Numbers = std::vector<double>;

Numbers weights_or_ones(const MergeSettings& s, size_t models) {
  return s.weights.empty() ? Numbers(models, 1.0) : s.weights;
}

// ---- linear combinations: coefficients, one a model, in the order of the models ----

Numbers mean_of_last(size_t last, size_t models) {
  Numbers c(models, 0.0);
  std::fill(c.end() - last, c.end(), 1.0 / last);
  return c;
}

Numbers uniform(const MergeSettings&, size_t models) { return mean_of_last(models, models); }

Numbers weighted(const MergeSettings& s, size_t models) {
  Numbers c = s.weights;
  if (!s.normalize.value_or(true)) return c;
  const double sum = std::accumulate(c.begin(), c.end(), 0.0);
  if (sum == 0) throw std::invalid_argument("weights: their sum is 0, so they cannot be normalised (normalize: false)");
  for (double& x : c) x /= sum;
  return c;
}

// e_1 = m_1, e_k = decay e_(k-1) + (1 - decay) m_k.
Numbers ema(const MergeSettings& s, size_t models) {
  const double decay = s.decay.value_or(0.9);
  Numbers c(models);
  for (size_t k = 0; k < models; ++k)
    c[k] = std::pow(decay, static_cast<double>(models - 1 - k)) * (k == 0 ? 1 : 1 - decay);
  return c;
}

// Latest weight averaging (Kaddour 2022).
Numbers lawa(const MergeSettings& s, size_t models) { return mean_of_last(s.last.value_or(models), models); }

struct DecaySchedule {
  const char* name;
  double (*at)(double x);  // from 1 at x = 0 to 0 at x = 1
};
constexpr DecaySchedule kSchedules[] = {
    {"linear", [](double x) { return 1 - x; }},
    {"cosine", [](double x) { return (1 + std::cos(std::numbers::pi * x)) / 2; }},
    {"1-sqrt", [](double x) { return 1 - std::sqrt(x); }},
};

const DecaySchedule& schedule_of(const MergeSettings& s) {
  const std::string name = s.schedule.value_or("linear");
  for (const DecaySchedule& schedule : kSchedules)
    if (name == schedule.name) return schedule;
  throw std::invalid_argument(fmt::format("schedule: found '{}', expected linear, cosine or 1-sqrt", name));
}

// WSM (Tian 2025): models 0 ... k, evenly spaced at a constant rate. The update that led to model i enters the merge
// with w_i = sum of c_j over j >= i, so a decay w_1 >= ... >= w_k >= 0 asks for c_0 = 1 - w_1, c_j = w_j - w_(j+1),
// c_k = w_k. w_i is the schedule at i / (k + 1): linear gives the plain mean, as in the paper.
Numbers wsm(const MergeSettings& s, size_t models) {
  const DecaySchedule& schedule = schedule_of(s);
  const size_t count = s.last.value_or(models);
  Numbers w(count + 1, 0.0);  // w_0 = 1, w_(k+1) = 0
  for (size_t i = 0; i < count; ++i) w[i] = schedule.at(static_cast<double>(i) / count);
  Numbers c(models, 0.0);
  for (size_t i = 0; i < count; ++i) c[models - count + i] = w[i] - w[i + 1];
  return c;
}

// ---- of one tensor ----

Numbers read_all(const TensorView& view) {
  Numbers values(view.numel());
  read_elements(view, 0, values);
  return values;
}

// mergekit's: of the directions, applied to the vectors as they are; nearly parallel ones are interpolated linearly.
void slerp(const MergeSettings& s, std::span<const TensorView> models, const TensorView*, std::span<double> out) {
  constexpr double kParallel = 0.9995, kZero = 1e-8;
  const double t = s.t.value_or(0.5);
  const Numbers a = read_all(models[0]), b = read_all(models[1]);
  double squares_a = 0, squares_b = 0, dot = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    squares_a += a[i] * a[i];
    squares_b += b[i] * b[i];
    dot += a[i] * b[i];
  }
  // A vector of length 0 has no direction: mergekit leaves it as it is, and its product with the other is then 0.
  const double norm_a = std::sqrt(squares_a), norm_b = std::sqrt(squares_b);
  const double cosine = dot / ((norm_a > kZero ? norm_a : 1) * (norm_b > kZero ? norm_b : 1));
  double of_a = 1 - t, of_b = t;
  if (std::abs(cosine) <= kParallel) {
    const double angle = std::acos(cosine);
    of_a = std::sin((1 - t) * angle) / std::sin(angle);
    of_b = std::sin(t * angle) / std::sin(angle);
  }
  for (size_t i = 0; i < a.size(); ++i) out[i] = of_a * a[i] + of_b * b[i];
}

// Of each model's difference to the base: which elements stay, and what those that stay are multiplied by.
struct Kept {
  std::vector<char> mask;
  double factor = 1;
};
using Sparsify = Kept (*)(const MergeSettings& s, const TensorView& model, size_t index, const Numbers& difference);

Kept keep_all(const MergeSettings&, const TensorView&, size_t, const Numbers& difference) {
  return {std::vector<char>(difference.size(), 1)};
}

// TIES: the floor(density * n) elements of largest magnitude (at least one); of equal ones those that come first.
Kept keep_largest(const MergeSettings& s, const TensorView&, size_t, const Numbers& difference) {
  const size_t n = difference.size();
  const size_t keep = std::clamp<size_t>(static_cast<size_t>(s.density.value_or(0.2) * static_cast<double>(n)),
                                         std::min<size_t>(1, n), n);
  Kept kept{std::vector<char>(n, keep == n)};
  if (keep == n) return kept;
  Numbers magnitudes(n);
  for (size_t i = 0; i < n; ++i) magnitudes[i] = std::abs(difference[i]);
  std::nth_element(magnitudes.begin(), magnitudes.begin() + (keep - 1), magnitudes.end(), std::greater<>());
  const double threshold = magnitudes[keep - 1];
  size_t left = keep;
  for (size_t i = 0; i < n; ++i)
    if (std::abs(difference[i]) > threshold) kept.mask[i] = 1, --left;
  for (size_t i = 0; i < n && left > 0; ++i)
    if (std::abs(difference[i]) == threshold) kept.mask[i] = 1, --left;
  return kept;
}

// DARE: each element stays with probability `density` and is divided by it.
Kept keep_at_random(const MergeSettings& s, const TensorView& model, size_t index, const Numbers& difference) {
  const double density = s.density.value_or(0.5);
  Kept kept{std::vector<char>(difference.size()), 1 / density};
  for (size_t i = 0; i < difference.size(); ++i)
    kept.mask[i] = dare_uniform(s.seed.value_or(0), index, model.name, i) < density;
  return kept;
}

// base + lambda * sum of weight * kept difference. With `consensus` (TIES) only elements whose sign is that of the
// weighted sum over the models enter; with `normalize` the sum is divided by the weights that entered.
void task_vectors(const MergeSettings& s, std::span<const TensorView> models, const TensorView* base,
                  std::span<double> out, Sparsify sparsify, bool consensus, bool normalize) {
  const Numbers origin = read_all(*base), weights = weights_or_ones(s, models.size());
  const size_t n = origin.size();
  const auto difference_of = [&](size_t k) {
    Numbers d = read_all(models[k]);
    for (size_t i = 0; i < n; ++i) d[i] -= origin[i];
    return d;
  };
  std::vector<Kept> kept;
  Numbers sign(consensus ? n : 0, 0.0);
  for (size_t k = 0; k < models.size(); ++k) {
    const Numbers d = difference_of(k);
    kept.push_back(sparsify(s, models[k], k, d));
    for (size_t i = 0; consensus && i < n; ++i)
      if (kept[k].mask[i]) sign[i] += weights[k] * kept[k].factor * d[i];
  }
  Numbers divisor(normalize ? n : 0, 0.0);
  std::fill(out.begin(), out.end(), 0.0);
  for (size_t k = 0; k < models.size(); ++k) {
    const Numbers d = difference_of(k);
    for (size_t i = 0; i < n; ++i) {
      if (!kept[k].mask[i] || (consensus && (d[i] == 0 || (sign[i] >= 0) != (d[i] > 0)))) continue;
      out[i] += weights[k] * kept[k].factor * d[i];
      if (normalize) divisor[i] += weights[k];
    }
  }
  const double lambda = s.lambda.value_or(1.0);
  for (size_t i = 0; i < n; ++i) {
    const double mean = normalize && divisor[i] != 0 ? out[i] / divisor[i] : out[i];
    out[i] = origin[i] + lambda * mean;
  }
}

// Ilharco 2022.
void task_arithmetic(const MergeSettings& s, std::span<const TensorView> models, const TensorView* base,
                     std::span<double> out) {
  task_vectors(s, models, base, out, keep_all, false, s.normalize.value_or(false));
}
// Yadav 2023: trim, elect the sign, mean of those that agree.
void ties(const MergeSettings& s, std::span<const TensorView> models, const TensorView* base, std::span<double> out) {
  task_vectors(s, models, base, out, keep_largest, true, s.normalize.value_or(true));
}
// Yu 2023.
void dare(const MergeSettings& s, std::span<const TensorView> models, const TensorView* base, std::span<double> out) {
  task_vectors(s, models, base, out, keep_at_random, false, s.normalize.value_or(false));
}
void dare_ties(const MergeSettings& s, std::span<const TensorView> models, const TensorView* base,
               std::span<double> out) {
  task_vectors(s, models, base, out, keep_at_random, true, s.normalize.value_or(false));
}

uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

template <class T, class Inside>
void check_range(const char* option, const std::optional<T>& value, Inside inside, const char* expected) {
  if (value && !inside(*value))
    throw std::invalid_argument(fmt::format("{}: found {}, expected {}", option, *value, expected));
}

}  // namespace

double dare_uniform(uint64_t seed, uint64_t model, const std::string& name, uint64_t index) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return static_cast<double>(mix64(mix64(mix64(seed) ^ mix64(hash + model)) + index) >> 11) * 0x1p-53;
}

const std::vector<MergeMethod>& merge_methods() {
  static const std::vector<MergeMethod> kMethods = {
      {"uniform", "mean of all models", {}, 1, 0, false, uniform},
      {"weighted",
       "sum of weights x model; weights are divided by their sum (normalize: false leaves them)",
       {"weights", "normalize"},
       1,
       0,
       false,
       weighted},
      {"ema", "e = decay e + (1 - decay) model, in the order given (decay 0.9)", {"decay"}, 1, 0, false, ema},
      {"lawa", "mean of the last K (all)", {"last"}, 1, 0, false, lawa},
      {"wsm",
       "weights that emulate a decay of the learning rate over the last K: schedule linear, cosine or 1-sqrt",
       {"last", "schedule"},
       1,
       0,
       false,
       wsm},
      {"slerp", "spherical interpolation of two models (t 0.5)", {"t"}, 2, 2, false, nullptr, slerp},
      {"task_arithmetic",
       "base + lambda x sum of weights x (model - base)",
       {"weights", "normalize", "lambda"},
       1,
       0,
       true,
       nullptr,
       task_arithmetic},
      {"ties",
       "trimmed to the density largest (0.2 of each tensor), signs elected, mean of those that agree",
       {"weights", "normalize", "density", "lambda"},
       1,
       0,
       true,
       nullptr,
       ties},
      {"dare",
       "each element of a difference kept with probability density (0.5), rescaled by its inverse",
       {"weights", "normalize", "density", "lambda", "seed"},
       1,
       0,
       true,
       nullptr,
       dare},
      {"dare_ties",
       "dare with the election of signs",
       {"weights", "normalize", "density", "lambda", "seed"},
       1,
       0,
       true,
       nullptr,
       dare_ties},
  };
  return kMethods;
}

const MergeMethod& check_merge(const MergeSettings& s, size_t models, bool base) {
  const MergeMethod* method = nullptr;
  std::string known;
  for (const MergeMethod& m : merge_methods()) {
    known += (known.empty() ? "" : ", ") + std::string(m.name);
    if (s.method == m.name) method = &m;
  }
  if (!method) throw std::invalid_argument(fmt::format("method: found '{}', expected one of {}", s.method, known));

  const std::pair<const char*, bool> given[] = {
      {"weights", !s.weights.empty()},    {"normalize", s.normalize.has_value()}, {"decay", s.decay.has_value()},
      {"last", s.last.has_value()},       {"schedule", s.schedule.has_value()},   {"t", s.t.has_value()},
      {"density", s.density.has_value()}, {"lambda", s.lambda.has_value()},       {"seed", s.seed.has_value()}};
  for (const auto& [option, is_given] : given) {
    if (!is_given || std::find(method->options.begin(), method->options.end(), option) != method->options.end())
      continue;
    std::string takes;
    for (const std::string& name : method->options) takes += (takes.empty() ? "" : ", ") + name;
    throw std::invalid_argument(fmt::format("{}: the method {} does not use it; it takes {}", option, method->name,
                                            takes.empty() ? "no options" : takes));
  }
  if (models < method->least || (method->most && models > method->most)) {
    throw std::invalid_argument(fmt::format("{}: found {} models, expected {}{}", method->name, models,
                                            method->most ? "exactly " : "at least ", method->least));
  }
  if (method->base && !base)
    throw std::invalid_argument(
        fmt::format("base: the method {} needs the model that the others began from", method->name));
  if (!method->base && base)
    throw std::invalid_argument(fmt::format("base: the method {} does not use it", method->name));
  if (s.method == "weighted" && s.weights.empty())
    throw std::invalid_argument("weights: the method weighted needs one a model");
  if (!s.weights.empty() && s.weights.size() != models)
    throw std::invalid_argument(fmt::format("weights: found {} for {} models", s.weights.size(), models));
  for (const double w : s.weights)
    if (!std::isfinite(w)) throw std::invalid_argument(fmt::format("weights: found {}, expected numbers", w));
  check_range(
      "decay", s.decay, [](double x) { return x >= 0 && x < 1; }, "at least 0 and below 1");
  check_range(
      "last", s.last, [&](int64_t x) { return x >= 1 && x <= static_cast<int64_t>(models); },
      fmt::format("1 to the number of models ({})", models).c_str());
  check_range(
      "t", s.t, [](double x) { return x >= 0 && x <= 1; }, "0 to 1");
  check_range(
      "density", s.density, [](double x) { return x > 0 && x <= 1; }, "above 0, at most 1");
  check_range(
      "lambda", s.lambda, [](double x) { return std::isfinite(x); }, "a number");
  schedule_of(s);
  if (method->coefficients) method->coefficients(s, models);  // a sum of weights that is 0
  return *method;
}

}  // namespace cairn::checkpoints
