// A file's bytes as memory: read-only, mapped, gone with the last owner.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>

namespace cairn::checkpoints {

struct Mapping {
  std::shared_ptr<const void> data;  // null for an empty file
  uint64_t size = 0;
};

/// Throws std::runtime_error naming the file where it is no regular file or cannot be opened or mapped.
Mapping map_file(const std::filesystem::path& path);

}  // namespace cairn::checkpoints
