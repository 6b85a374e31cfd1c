// What each rank writes of a checkpoint: all of them together every tensor once, and equally many bytes each as far as
// tensors allow.
#pragma once

#include <string>
#include <vector>

#include "checkpoints/pieces.h"
#include "trainer/model_io.h"
#include "trainer/state.h"

namespace cairn {

struct CheckpointShare {
  struct File {
    std::string stem, path;
    size_t first = 0, count = 0;  // of `tensors`
  };
  std::vector<checkpoints::TensorPiece> tensors;
  std::vector<File> files;
  DiskModel model;  // what the views look into, moments and averages among its owners
};

// This rank's share. What every rank holds is shared out: the weights (one file, model.safetensors, where they are no
// more than a rank's part of everything) and moments and averages; what a rank holds alone (ZeRO-1) it writes itself.
// `shard_bytes`: the largest file of weights. Collective.
CheckpointShare checkpoint_share(State& state, uint64_t shard_bytes = checkpoints::kShardBytes);

}  // namespace cairn
