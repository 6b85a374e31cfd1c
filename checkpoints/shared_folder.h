// A folder that several processes write at once, each its own files, on one file system that all of them see. They meet
// in the hidden folder alone: a process that has synced its files leaves their entries there, the first process takes
// them up and commits.
#pragma once
#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/pieces.h"

namespace cairn::checkpoints {

/// One of the processes that write a folder.
struct Writer {
  int rank = 0, count = 1;
  /// The same for all of them and another one at every start: what a process of an earlier start still writes goes
  /// into a hidden folder that nobody commits.
  std::string attempt;
};

/// Cuts tensors of so many bytes into loads.size() contiguous runs, one for each writer, such that loads[r] (what the
/// writer has to write anyway) and its run come out as equal as the borders between tensors allow. Writer r gets
/// [result[r], result[r + 1]).
std::vector<size_t> share_out(const std::vector<uint64_t>& bytes, const std::vector<uint64_t>& loads);

class SharedFolder {
 public:
  /// As FolderCommit's. Every writer calls the constructor; who comes first creates the hidden folder.
  SharedFolder(std::filesystem::path target, Writer writer);
  /// Where commit() was not reached: the first removes the hidden folder, the others leave word that they failed.
  ~SharedFolder();

  void write(const std::string& path, std::string_view bytes) { folder_.write(path, bytes); }
  /// STEM.safetensors ("training/optimizer.safetensors") or one of the files STEM-0000K-of-0000N.safetensors, whose
  /// index the first writer adds. Pieces are stored under their piece_name.
  void write_tensors(const std::string& stem, const std::string& path, std::span<const TensorPiece> tensors);

  /// All but the first: says that this writer's files are on the disk, and returns. The first: waits until all have
  /// said so, adds the indexes and commits. Waiting ends with std::runtime_error when a writer says that it failed,
  /// after `limit`, or with what `check` throws, which is called meanwhile.
  void commit(const nlohmann::ordered_json& about, std::chrono::milliseconds limit,
              const std::function<void()>& check = {});

 private:
  struct Stored {  // a tensor in one of the files, as the index needs it
    std::string stem, path, name;
    uint64_t bytes = 0, numel = 0;
    std::vector<int64_t> whole;
    bool piece = false;
  };
  void leave_word(nlohmann::ordered_json word);
  bool take_up(int rank);
  void write_index(const std::string& stem);
  std::filesystem::path word_of(int rank) const;

  Writer writer_;
  FolderCommit folder_;
  std::vector<Stored> stored_;
  bool done_ = false;
};

}  // namespace cairn::checkpoints
