// Divergences of two categorical distributions given by their log-probabilities, in float64, and their gradients by the
// logits of the first.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace cairn {

// log softmax(logits / temperature) [V].
void log_softmax(const float* logits, int64_t V, double temperature, double* out);

// -sum p log p, nats; what has no probability adds nothing.
double entropy(const double* log_p, int64_t V);

// distill_loss.h's divergence by `beta` of S from T, [V] each. gradient [V] is by S's logits.
double divergence(double beta, const double* log_s, const double* log_t, int64_t V, double* gradient);

// The same over the tokens `ids` alone, whose log-probabilities under T are `log_t`. tail: T's probability of all other
// tokens, which are one event more; none: both distributions are normalized over `ids`. gradient [V] is by S's logits.
double divergence_topk(double beta, const double* log_s, int64_t V, std::span<const int32_t> ids,
                       std::span<const double> log_t, std::optional<double> tail, double* gradient);

}  // namespace cairn
