// How well a model predicts given tokens.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "trainer/data/dataset.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn {

struct Evaluation {
  int64_t tokens = 0;        // predicted
  double nll = 0;            // mean nats a predicted token
  double bits_per_byte = 0;  // bits of all predicted tokens over the bytes of their text; 0 where there is no tokenizer
};

// The first `sequences` rows of a validation set, in its own order.
Evaluation evaluate_set(const models::Decoder& model, const data::Dataset& data, const std::string& set,
                        int64_t sequences, int64_t micro_batch, int64_t context, const data::Tokenizer* tokenizer,
                        const models::Pass& like);

// A text: ids with the special tokens that the tokenizer adds, in windows of `context` tokens whose starts are `stride`
// apart (stride = context: windows do not overlap; less: each token is predicted once, with more context before it).
Evaluation evaluate_text(const models::Decoder& model, const data::Tokenizer& tokenizer, const std::string& text,
                         int64_t context, int64_t stride);

// log p(ids[i] | ids before i), i >= 1. Throws std::invalid_argument where the ids do not fit the model's vocabulary or
// context.
std::vector<float> log_probabilities(const models::Decoder& model, const std::vector<int32_t>& ids);

}  // namespace cairn
