// The checkpoints of a run: RUN/checkpoints/step-N, committed folders alone.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/schedule.h"

namespace cairn::checkpoints {

/// RUN/.lock, held by the one process that writes the run; the system lets it go when the process ends, however it
/// ends.
class RunLock {
 public:
  /// Creates the folder where needed. Throws std::runtime_error naming the holder's process id and host.
  explicit RunLock(const std::filesystem::path& run);
  ~RunLock();
  RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  RunLock& operator=(RunLock&&) = delete;

 private:
  int fd_ = -1;
};

/// What a checkpoint folder holds besides its manifest. Views need to live until commit() returns.
struct CheckpointContents {
  std::vector<TensorView> model;                           // model.safetensors (or shards), Hugging Face names
  std::vector<TensorView> optimizer;                       // training/optimizer.safetensors; empty: not written
  std::string config;                                      // config.json
  nlohmann::ordered_json state;                            // training/state.json; null: not written
  std::vector<std::pair<std::string, std::string>> files;  // path, bytes: tokenizer.json, generation_config.json, ...
  nlohmann::ordered_json about = nlohmann::ordered_json::object();  // to the manifest: kind, digest, metrics, ...
  Metadata metadata = {{"format", "pt"}};
  uint64_t shard_bytes = kShardBytes;
};

struct StoredStep {
  int64_t step = 0;
  std::filesystem::path path;
  Manifest manifest;

  /// The number `metrics.NAME` of the manifest, where it is there.
  std::optional<double> metric(const std::string& name) const;
};

struct DamagedStep {
  int64_t step = 0;
  Fault fault;
};

class Store {
 public:
  enum class Mode { read, write };

  /// write: takes the lock, creates the folders, removes what a crash left (hidden folders and files).
  Store(std::filesystem::path run, Mode mode);

  /// "step-00000200": eight digits (more from 10^8 on).
  static std::string folder_name(int64_t step);
  /// The step of such a name; nothing for any other name.
  static std::optional<int64_t> step_of(const std::string& folder_name);
  std::filesystem::path path_of(int64_t step) const;
  const std::filesystem::path& run() const { return run_; }
  std::filesystem::path folder() const { return run_ / "checkpoints"; }

  /// Committed steps in ascending order: those whose manifest is whole and whose files have their sizes. `damaged`,
  /// where given, receives the others.
  std::vector<StoredStep> list(std::vector<DamagedStep>* damaged = nullptr) const;

  struct Newest {
    std::optional<StoredStep> step;
    std::vector<DamagedStep> damaged;  // newer ones that were passed over
  };
  /// The newest step at or before `at_most` whose every byte is as it was written.
  Newest newest_valid(int64_t at_most = INT64_MAX) const;

  /// Writes and commits step-N; a step that is stored already is refused. Write mode only, as is what follows.
  StoredStep commit(int64_t step, const CheckpointContents& contents);
  /// Renames to a hidden name, then removes. The newest listed step is refused.
  void remove(int64_t step);
  /// Deletes by rule (metrics from the manifests); returns the steps deleted.
  std::vector<int64_t> retain(const Retention& retention);
  /// Drops every stored step after `step`, damaged ones too: a run that goes on from an earlier step.
  std::vector<int64_t> truncate_after(int64_t step);

  /// What the constructor removed, for the log.
  const std::vector<std::string>& leftovers() const { return leftovers_; }

 private:
  void delete_folder(const std::filesystem::path& folder);
  void require_writer(const char* what) const;

  std::filesystem::path run_;
  std::optional<RunLock> lock_;
  std::vector<std::string> leftovers_;
};

}  // namespace cairn::checkpoints
