// Multi-token prediction (DeepSeek-V3 report, 2024, section 2.2): modules behind the decoder, each of which looks one
// token further. Module d = 1 .. D at position i, which has seen the tokens up to t[i + d], predicts t[i + d + 1]:
//
//   u   = eh_proj [enorm(Emb(t[i + d])) ; hnorm(h^(d-1)[i])]       [N, 2C] -> [N, C], the embedding first (equation 21)
//   h^d = norm(block(u))                                           at the positions of the trunk (equation 22)
//   p   = softmax(head(h^d))                                       (equation 23)
//
// Embedding and head are the model's own. What the module before hands on is what its head reads: h^0 is the trunk's
// hidden state after model.norm, h^d that after the module's norm. The report's equations leave the norm open (its
// figure draws the line from the trunk's last block), but the code that was published with the weights, vLLM and SGLang
// (for GLM and Qwen3-Next too) all feed the normalised state, so published modules were fit on it.
//
// Here modules count from 0: mtp.layers.0 is d = 1.
#pragma once

#include "models/block.h"
#include "models/layers/linear.h"

namespace cairn::models {

class MtpModule {
 public:
  // Module `module` of `config`; its block is number blocks + module.
  MtpModule(Parameters& parameters, const DecoderConfig& config, int64_t module, std::shared_ptr<RopeTable> rope);

  // embedded [N, C]: Emb(t[i + d]); hidden [N, C]: h^(d-1) -> h^d, [N, C].
  at::Tensor forward(const at::Tensor& embedded, const at::Tensor& hidden, const Pass& pass, bool checkpointing) const;
  const Mixer& mixer() const { return block_.mixer(); }

 private:
  int64_t place_;  // for the seams: after the final norm
  Norm enorm_, hnorm_, norm_;
  Linear eh_proj_;
  Block block_;
};

// What module `module` reads and predicts, of rows whose own tokens are `ids` and next tokens `targets`, int32 [N] as
// Decoder::loss takes them: ids[i + d] and targets[i + d] (d = module + 1). Where that is in another sequence or
// another document of `segments` (int32 [N] or undefined) there is nothing to predict, -1; what such a position reads
// is its own token, and no position that predicts sees it.
struct MtpRows {
  at::Tensor ids, targets;
};
MtpRows mtp_rows(const at::Tensor& ids, const at::Tensor& targets, const at::Tensor& segments, int64_t batch,
                 int64_t module);

}  // namespace cairn::models
