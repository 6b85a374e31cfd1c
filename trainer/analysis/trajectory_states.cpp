#include "trainer/analysis/trajectory_states.h"

namespace cairn::analysis {

std::shared_ptr<const TrajectoryStates> open_trajectory(const std::filesystem::path&) { return nullptr; }

}  // namespace cairn::analysis
