// Is a trajectory as it was written?
#pragma once
#include <filesystem>
#include <optional>

#include "checkpoints/manifest.h"

namespace cairn::checkpoints::trajectory {

/// The first thing that is wrong with RUN/trajectory (the folder itself is passed): its list of sealed segments, each
/// segment's bytes against the digest that was taken when it was sealed, trajectory.h5, every source that it names, and
/// whether every chunk is where it should be. Nothing where all is as it was written, or where the folder is missing.
/// What a crash leaves (unsealed segments) is no fault.
std::optional<Fault> verify(const std::filesystem::path& folder);

/// The folder holds a trajectory: sealed segments, what joins them, or the list of them.
bool is_trajectory(const std::filesystem::path& folder);

}  // namespace cairn::checkpoints::trajectory
