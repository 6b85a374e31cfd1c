// A tokenizer trained on the texts of a run, kept in the cache: a second start reads it instead of training again.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainer/data/source.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {

// Byte-level BPE of the documents of `sources` that validation_fraction = `held_out` leaves to training. The entry of
// the cache (CACHE/tokenizers/KEY, a folder with tokenizer.json) is keyed by everything that the result depends on:
// digests of the files, how they are split into documents, the fraction, the options, the version of the training. An
// entry that is damaged is made again. Throws as read_documents and train_bpe do.
std::shared_ptr<const Tokenizer> trained_tokenizer(const std::vector<SourceOptions>& sources, double held_out,
                                                   const BpeTrainOptions& options, const std::string& cache);

}  // namespace cairn::data
