#include "trainer/analysis/trajectory_states.h"

#include "checkpoints/journal.h"
#include "checkpoints/trajectory/reader.h"
#include "checkpoints/trajectory/verify.h"

namespace cairn::analysis {
namespace {

namespace fs = std::filesystem;
namespace trajectory = checkpoints::trajectory;

// One row of the trajectory, read tensor by tensor when it is asked for.
class RowWeights : public Weights {
 public:
  RowWeights(const fs::path& folder, int64_t step) : reader_(folder), row_(reader_.row_of(step).value()) {
    for (const auto& tensor : reader_.format().tensors) names_.push_back(tensor.name);
    std::sort(names_.begin(), names_.end());
  }
  const std::vector<std::string>& names() const override { return names_; }
  std::vector<int64_t> shape(const std::string& name) const override {
    const std::lock_guard lock(mutex_);
    return reader_.format().tensors[reader_.tensor(name)].shape;
  }
  Tensor get(const std::string& name) const override {
    const std::lock_guard lock(mutex_);
    const size_t index = reader_.tensor(name);
    const auto& format = reader_.format();
    const auto dtype =
        format.dtype == checkpoints::hdf5::Type::bf16 ? checkpoints::DType::BF16 : checkpoints::DType::F32;
    checkpoints::TensorView view{name, dtype, format.tensors[index].shape, nullptr};
    const auto bits = std::make_shared<std::vector<char>>(view.bytes());
    reader_.read_bits(index, row_, 1, bits->data());
    view.data = bits->data();
    return {std::move(view), bits};
  }

 private:
  mutable std::mutex mutex_;
  mutable trajectory::Reader reader_;
  int64_t row_;
  std::vector<std::string> names_;
};

class RunTrajectory : public TrajectoryStates {
 public:
  explicit RunTrajectory(const fs::path& run) : folder_(run / "trajectory"), index_(trajectory::read_index(folder_)) {
    for (const auto& tensor : index_.format.tensors) names_.push_back(tensor.name);
    std::sort(names_.begin(), names_.end());
    // The digest of a step's state says more than the segment's, which changes when segments are merged.
    for (const auto& line : checkpoints::read_journal(run / "journal.jsonl"))
      if (line.contains("digest") && line.at("digest").is_string())
        keys_[line.at("step").get<int64_t>()] = line.at("digest").get<std::string>();
    for (const auto& segment : index_.segments)
      for (const int64_t step : segment.steps) keys_.try_emplace(step, segment.file.xxh3);
  }
  const std::vector<std::string>& names() const override { return names_; }
  std::vector<int64_t> steps() const override { return index_.steps(); }
  checkpoints::DType dtype() const override {
    return index_.format.dtype == checkpoints::hdf5::Type::bf16 ? checkpoints::DType::BF16 : checkpoints::DType::F32;
  }
  std::unique_ptr<Weights> weights(int64_t step) const override { return std::make_unique<RowWeights>(folder_, step); }
  std::string key(int64_t step) const override {
    return fmt::format("{} {} {}", keys_.at(step), step, checkpoints::dtype_name(dtype()));
  }

 private:
  fs::path folder_;
  trajectory::Index index_;
  std::vector<std::string> names_;
  std::map<int64_t, std::string> keys_;
};

}  // namespace

std::shared_ptr<const TrajectoryStates> open_trajectory(const fs::path& run) {
  if (!trajectory::is_trajectory(run / "trajectory")) return nullptr;
  return std::make_shared<RunTrajectory>(run);
}

}  // namespace cairn::analysis
