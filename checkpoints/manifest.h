// A committed folder: MANIFEST.json lists every file with its size and digest and is written last, inside a hidden
// folder that is then renamed to its name. What has its name is whole.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/file.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

inline constexpr const char* kManifestName = "MANIFEST.json";
inline constexpr const char* kTemporaryPrefix = ".tmp-";  // being written
inline constexpr const char* kDeletedPrefix = ".del-";    // being deleted

struct Manifest {
  std::vector<FileEntry> files;                                     // sorted by path
  nlohmann::ordered_json about = nlohmann::ordered_json::object();  // what the writer says: step, kind, digest, metrics

  uint64_t bytes() const;  // of all files
};

/// The first thing that is wrong with a committed folder.
struct Fault {
  std::string file;      // relative to the folder
  std::string problem;   // missing, extra, truncated, too long, corrupted, malformed manifest
  std::string expected;  // size or digest
  std::string found;

  /// "model.safetensors is truncated: 1000 bytes expected, 900 found"
  std::string message() const;
};

enum class Depth {
  sizes,    // manifest whole, every file there with its size, none besides: no file is read
  digests,  // and every byte as it was written
};

/// Throws std::runtime_error where the manifest is missing or changed.
Manifest read_manifest(const std::filesystem::path& folder);

/// The first fault, in the order of the paths; nothing where the folder is as it was committed.
std::optional<Fault> verify_folder(const std::filesystem::path& folder, Depth depth = Depth::digests);

/// As verify_folder, but throws std::runtime_error naming folder, file, expected and found. Call before loading.
Manifest check_folder(const std::filesystem::path& folder, Depth depth = Depth::digests);

/// Writes a folder in steps and makes it appear at once. Not for two writers of one folder at a time (Store's lock sees
/// to that); SharedFolder is for several processes.
class FolderCommit {
 public:
  /// Creates the hidden folder `.tmp-NAME` beside `target` (a leftover of that name is removed first). Throws
  /// std::runtime_error where `target` exists or its parent cannot be written.
  explicit FolderCommit(std::filesystem::path target);
  /// The hidden folder `.tmp-NAME.ATTEMPT` of several processes: created where it is not there, else kept as it is.
  FolderCommit(std::filesystem::path target, const std::string& attempt);
  /// Removes the hidden folder where commit() was not reached.
  ~FolderCommit();
  FolderCommit(const FolderCommit&) = delete;
  FolderCommit& operator=(const FolderCommit&) = delete;

  const std::filesystem::path& target() const { return target_; }
  const std::filesystem::path& temporary() const { return temporary_; }

  /// `path` is relative to the folder; parents are created.
  void write(const std::string& path, std::string_view bytes);
  void write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                         const Metadata& metadata = {{"format", "pt"}});
  /// model.safetensors or its shards and index.
  void write_model(std::span<const TensorView> tensors, const Metadata& metadata = {{"format", "pt"}},
                   uint64_t shard_bytes = kShardBytes);
  /// A copy of a file that lies elsewhere.
  void copy(const std::string& path, const std::filesystem::path& from);
  /// A file that another process wrote (and synced) under temporary(); `entry.path` relative to the folder.
  void adopt(FileEntry entry);
  /// Written or adopted so far.
  const std::vector<FileEntry>& files() const { return manifest_.files; }
  /// Another process commits: the destructor leaves the hidden folder to it.
  void release() { owned_ = false; }

  /// Syncs, writes the manifest, syncs, renames, syncs the parent. After it returns the folder survives a power cut.
  Manifest commit(nlohmann::ordered_json about = nlohmann::ordered_json::object());

 private:
  std::filesystem::path place(const std::string& path);

  std::filesystem::path target_, temporary_;
  Manifest manifest_;
  bool owned_ = true;  // the hidden folder is there and is this object's to remove
};

}  // namespace cairn::checkpoints
