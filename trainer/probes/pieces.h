// The batch of a step, a micro-batch at a time, for passes that only measure.
#pragma once

#include "trainer/step.h"

namespace cairn {

// Rows of a batch with the products and kernels of the run, without dropout.
inline ModelInput measuring_input(const data::Batch& batch, const StepSettings& settings) {
  ModelInput input = model_input(batch);
  input.pass.products = settings.products;
  input.pass.reference = settings.reference;
  input.pass.aten = settings.aten;
  input.pass.indexer = settings.indexer;
  input.pass.indexer.train = false;
  input.pass.experts = settings.experts;
  return input;
}

// Rows [0, rows) of the batch in pieces of at most `piece` rows.
template <class Work>
void for_pieces(const StepData& data, const StepSettings& settings, int64_t rows, int64_t piece, const Work& work) {
  for (int64_t row = 0; row < rows; row += piece) {
    ModelInput input = measuring_input(data.rows(row, std::min(piece, rows - row)), settings);
    work(input);
  }
}

}  // namespace cairn
