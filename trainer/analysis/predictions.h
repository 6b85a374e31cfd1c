// What a model predicts for rows of tokens.
#pragma once

#include <vector>

#include "models/decoder.h"
#include "trainer/analysis/states.h"

namespace cairn::analysis {

// Mean nats a target token of the text.
double mean_nll(const models::Decoder& model, const FixedText& text);

// One entry a target token (targets -1 are left out), in the order of the batch.
struct Predictions {
  std::vector<double> nll;      // nats
  std::vector<char> is_argmax;  // of equal logits the first counts
};
Predictions predict(const models::Decoder& model, const data::Batch& batch);

// to = (1 - t) a + t b, all weights of three decoders of one configuration.
void interpolate(models::Decoder& to, const models::Decoder& a, const models::Decoder& b, double t);

}  // namespace cairn::analysis
