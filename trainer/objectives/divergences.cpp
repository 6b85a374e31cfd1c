#include "trainer/objectives/divergences.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace cairn {
namespace {

// p * x, where what has no probability counts nothing.
double weighted(double log_p, double x) {
  const double p = std::exp(log_p);
  return p == 0 ? 0 : p * x;
}

// log(exp(a) + exp(b))
double log_add(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return high == -HUGE_VAL ? high : high + std::log1p(std::exp(low - high));
}

double log_sum(std::span<const double> logs) {
  const double high = *std::max_element(logs.begin(), logs.end());
  if (high == -HUGE_VAL) return high;
  double sum = 0;
  for (const double x : logs) sum += std::exp(x - high);
  return high + std::log(sum);
}

// What an event gives: to the divergence, and the slope s_e * dD/ds_e, s_e its probability under S, up to a multiple of
// s_e, which the sum over all events takes away.
struct Event {
  double value = 0, slope = 0;
};
Event event(double beta, double log_s, double log_t) {
  if (beta == 0) return {weighted(log_t, log_t - log_s), -std::exp(log_t)};
  if (beta == 1) {
    const double value = weighted(log_s, log_s - log_t);
    return {value, value};
  }
  const double log_m = log_add(std::log(beta) + log_t, std::log1p(-beta) + log_s);
  const double student = (1 - beta) * weighted(log_s, log_s - log_m);
  return {beta * weighted(log_t, log_t - log_m) + student, student};
}

}  // namespace

void log_softmax(const float* logits, int64_t V, double temperature, double* out) {
  double high = -HUGE_VAL, sum = 0;
  for (int64_t v = 0; v < V; ++v) high = std::max(high, static_cast<double>(logits[v]));
  for (int64_t v = 0; v < V; ++v) sum += std::exp((logits[v] - high) / temperature);
  const double log_sum = std::log(sum);
  for (int64_t v = 0; v < V; ++v) out[v] = (logits[v] - high) / temperature - log_sum;
}

double entropy(const double* log_p, int64_t V) {
  double sum = 0;
  for (int64_t v = 0; v < V; ++v) sum -= weighted(log_p[v], log_p[v]);
  return sum;
}

double divergence(double beta, const double* log_s, const double* log_t, int64_t V, double* gradient) {
  double value = 0, slopes = 0;
  for (int64_t v = 0; v < V; ++v) {
    const Event e = event(beta, log_s[v], log_t[v]);
    value += e.value, slopes += e.slope;
    gradient[v] = e.slope;
  }
  for (int64_t v = 0; v < V; ++v) gradient[v] -= std::exp(log_s[v]) * slopes;
  return value;
}

double divergence_topk(double beta, const double* log_s, int64_t V, std::span<const int32_t> ids,
                       std::span<const double> log_t, std::optional<double> tail, double* gradient) {
  std::vector<bool> named(V, false);
  std::vector<double> kept, rest;
  for (const int32_t id : ids) named[id] = true, kept.push_back(log_s[id]);
  for (int64_t v = 0; v < V; ++v) {
    if (!named[v]) rest.push_back(log_s[v]);
  }
  std::fill(gradient, gradient + V, 0.0);
  if (!tail) {  // the K tokens, normalized: logits of other tokens do not act
    const double all_s = log_sum(kept), all_t = log_sum(log_t);
    double value = 0, slopes = 0;
    for (size_t k = 0; k < ids.size(); ++k) {
      const Event e = event(beta, log_s[ids[k]] - all_s, log_t[k] - all_t);
      value += e.value, slopes += e.slope;
      gradient[ids[k]] = e.slope;
    }
    for (const int32_t id : ids) gradient[id] -= std::exp(log_s[id] - all_s) * slopes;
    return value;
  }
  double value = 0, slopes = 0;
  for (size_t k = 0; k < ids.size(); ++k) {
    const Event e = event(beta, log_s[ids[k]], log_t[k]);
    value += e.value, slopes += e.slope;
    gradient[ids[k]] = e.slope;
  }
  const double log_rest = rest.empty() ? -HUGE_VAL : log_sum(rest);
  if (!rest.empty()) {
    const Event e = event(beta, log_rest, std::log(*tail));
    value += e.value, slopes += e.slope;
    for (int64_t v = 0; v < V; ++v) {
      if (!named[v] && log_s[v] > -HUGE_VAL)
        gradient[v] = e.slope * std::exp(log_s[v] - log_rest);  // its share of the event
    }
  }
  for (int64_t v = 0; v < V; ++v) gradient[v] -= std::exp(log_s[v]) * slopes;
  return value;
}

}  // namespace cairn
