// Is what lies at a path as it was written? A run, a checkpoint, a trajectory, a model of any origin.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace cairn {

struct Verification {
  struct Checked {
    std::string path, kind, what;  // "run/journal.jsonl", "journal", "40 lines: checksums, order"
  };
  struct Broken {
    std::string path, problem;
  };

  std::vector<Checked> checked;  // in order; whole, up to the fault
  std::optional<Broken> fault;   // the first
};

// Reads every byte. Of a run: run.yaml against what build.json recorded, the checksums and the order of the journal,
// each checkpoint (manifest, formats, the digest of its state made again from the stored tensors, that of the journal),
// the trajectory. A model that Cairn did not write has no digests: formats, and that its tensors are those that
// config.json describes. Throws std::invalid_argument where nothing is there, or nothing that Cairn knows.
Verification verify(const std::filesystem::path& path);

}  // namespace cairn
