// TensorBoard event files. The few protobuf messages needed are encoded by hand: a second protobuf in the process would
// clash with the one inside libtorch_cpu.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace cairn {

/// One event file, appended to. Not for two threads at once. Errors (full disk, folder not writable):
/// std::runtime_error.
class TensorBoardWriter {
 public:
  /// Opens a new file in `folder` that sorts after those that are there. `purge_step` >= 0: TensorBoard forgets what
  /// earlier files say about this step and later ones, so a run resumed after step N passes N + 1.
  explicit TensorBoardWriter(const std::filesystem::path& folder, int64_t purge_step = -1);
  /// Flushes; never throws.
  ~TensorBoardWriter();
  TensorBoardWriter(TensorBoardWriter&& other) noexcept;
  TensorBoardWriter& operator=(TensorBoardWriter&&) = delete;

  void scalar(std::string_view tag, double value, int64_t step);
  /// Shown as Markdown.
  void text(std::string_view tag, std::string_view markdown, int64_t step);
  /// Hands what was gathered to the system. Happens by itself each 64 KiB.
  void flush();

  const std::filesystem::path& path() const { return path_; }

 private:
  void event(int64_t step, std::string_view body);

  std::filesystem::path path_;
  std::string pending_;
  int fd_ = -1;
};

}  // namespace cairn
