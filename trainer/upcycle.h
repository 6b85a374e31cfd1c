// Upcycling (Komatsuzaki et al. 2023): a mixture of experts that begins with the weights of a dense model.
#pragma once

#include "models/decoder.h"

namespace cairn {

struct UpcycleOptions {
  int64_t copies = 8;  // of each feed-forward
  int64_t slices = 1;  // a copy is cut into so many experts, by its hidden features (fine-grained experts)
  int64_t topk = 2;    // experts a token goes to; a multiple of slices
  uint64_t seed = 1234;
};

// config.json of the mixture: llama and mistral become mixtral, qwen3 becomes qwen3_moe. Experts: copies * slices.
// Throws std::invalid_argument where the family has no mixture, features do not divide, or topk does not fit.
nlohmann::ordered_json upcycled_config(const models::DecoderConfig& dense, const UpcycleOptions& options);

// Fills `mixture`, built from that config, from `dense`. Everything but the feed-forward is copied. Expert c * slices +
// s has features [s F / slices, (s + 1) F / slices) of the feed-forward; the router of a copy is drawn from the seed as
// the family draws it, the slices of a copy share it, and their down_proj is multiplied by `slices`: ties go to the
// lower expert, so a token gets all slices of its best topk / slices copies, and the mixture computes at first what the
// dense model does.
void upcycle(const models::Decoder& dense, models::Decoder& mixture, const UpcycleOptions& options);

}  // namespace cairn
