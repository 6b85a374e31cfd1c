// One block of a decoder: a mixer and a feed-forward, each added to the residual stream.
#pragma once

#include "models/decoder_config.h"

namespace cairn::models {

class Block {
 public:
  // Block `index` of the decoder (DecoderConfig::block), whose parameters begin with `name`.
  Block(Parameters& parameters, const std::string& name, const DecoderConfig& config, int64_t index,
        std::shared_ptr<RopeTable> rope);

  // The residual stream and what is still to be added to it: the addition is fused into the next norm.
  struct Stream {
    at::Tensor x;        // [N, C]
    at::Tensor pending;  // [N, C] or undefined
  };
  Stream forward(const Stream& in, const Pass& pass) const;
  // The same between the seams' calls for `place`. `checkpointing`: the backward pass runs the block again instead of
  // keeping its activations. The block outlives the graph.
  Stream run(const Stream& in, const Pass& pass, int64_t place, bool checkpointing) const;
  const Mixer& mixer() const { return *mixer_; }

 private:
  at::Tensor dropped(const at::Tensor& x, int64_t place, const Pass& pass) const;

  int64_t index_;
  bool parallel_;
  std::unique_ptr<Mixer> mixer_;
  std::unique_ptr<FeedForwardLayer> feed_forward_;
  Norm pre_mixer_, post_mixer_, pre_feed_forward_, post_feed_forward_;
};

// x as it is; the backward pass tells the seams that it enters block `place`, or that it leaves it.
at::Tensor boundary(const at::Tensor& x, const Pass& pass, int64_t place, bool entering_backward);

}  // namespace cairn::models
