// The batch of a step, a micro-batch at a time, for passes that only measure.
#pragma once

#include "trainer/step.h"

namespace cairn {

// Rows [0, rows) of the batch in pieces of at most `piece` rows, with the products and kernels of the run, without
// dropout.
template <class Work>
void for_pieces(const StepData& data, const StepSettings& settings, int64_t rows, int64_t piece, const Work& work) {
  for (int64_t row = 0; row < rows; row += piece) {
    ModelInput input = model_input(data.rows(row, std::min(piece, rows - row)));
    input.pass.products = settings.products;
    input.pass.reference = settings.reference;
    work(input);
  }
}

}  // namespace cairn
