// The terms of the losses of pairs. To add one: a function in the file of its kind and a line in the table of
// pairs.cpp.
#pragma once

#include <cmath>

#include "trainer/objectives/preference/options.h"

namespace cairn::preference {

// What a term sees of a completion: its score, which is the log-ratio to the reference (through f' of the divergence),
// or the log-probability where there is no reference; summed or averaged over the tokens as the loss asks.
struct Pair {
  double chosen = 0, rejected = 0;
};
struct PairTerm {
  double loss = 0, dchosen = 0, drejected = 0;
};
using PairFunction = PairTerm (*)(const Pair&, const Options&);

inline double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
inline double log_sigmoid(double x) { return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x)); }

// A loss of the difference alone: f(chosen - rejected) with its derivative.
inline PairTerm of_difference(double loss, double derivative) { return {loss, derivative, -derivative}; }

// terms_difference.cpp
PairTerm dpo_sigmoid(const Pair&, const Options&), hinge(const Pair&, const Options&), ipo(const Pair&, const Options&);
PairTerm robust(const Pair&, const Options&), exo_pair(const Pair&, const Options&),
    discopop(const Pair&, const Options&);
PairTerm smoothed(const Pair&, const Options&), simpo(const Pair&, const Options&), orpo(const Pair&, const Options&);
// terms_separate.cpp
PairTerm nca_pair(const Pair&, const Options&), bco_pair(const Pair&, const Options&);
PairTerm sppo_hard(const Pair&, const Options&), apo_zero(const Pair&, const Options&),
    apo_down(const Pair&, const Options&);

// log(odds(chosen) / odds(rejected)), odds(p) = p / (1 - p), of averaged log-probabilities: ORPO's metric.
double log_odds(const Pair& pair);

}  // namespace cairn::preference
