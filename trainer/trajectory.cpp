#include "trainer/trajectory.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>

#include <cstring>

#include "checkpoints/trajectory/verify.h"
#include "trainer/model_io.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
namespace trajectory = checkpoints::trajectory;

// The model's tensors that a pattern names, in the model's order.
std::vector<size_t> choose(const config::RunConfig& config, const std::vector<checkpoints::TensorView>& views) {
  const auto& patterns = config.trajectory.tensors;
  if (patterns.empty())
    config.fail("trajectory.tensors", "found no pattern, expected some, or nothing at all for every tensor");
  std::vector<bool> taken(views.size());
  for (size_t p = 0; p < patterns.size(); ++p) {
    bool any = false;
    for (size_t t = 0; t < views.size(); ++t) {
      if (::fnmatch(patterns[p].c_str(), views[t].name.c_str(), 0) != 0) continue;
      taken[t] = any = true;
    }
    if (!any)
      config.fail(fmt::format("trajectory.tensors.{}", p),
                  fmt::format("found '{}', which is no tensor's name, expected names or patterns (*, ?) such as '{}'",
                              patterns[p], views.empty() ? "*" : views.front().name));
  }
  std::vector<size_t> chosen;
  for (size_t t = 0; t < views.size(); ++t)
    if (taken[t]) chosen.push_back(t);
  return chosen;
}

// What the trajectory says of a step is never more than the journal has on the disk.
void sync_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;  // no step so far: the initialisation has no line
  const bool synced = ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  if (!synced) throw std::runtime_error(fmt::format("cannot sync {}: {}", path.string(), std::strerror(error)));
}

}  // namespace

checkpoints::Schedule trajectory_schedule(const config::TrajectoryOptions& options) {
  return {.every = options.every,
          .log_spaced = options.log_spaced ? checkpoints::Spacing::doubling : checkpoints::Spacing::none,
          .at = options.at,
          .at_end = false};
}

TrajectoryHook::TrajectoryHook(const config::RunConfig& config, const fs::path& run, State& state, bool writes,
                               int64_t keep_to)
    : journal_(run / "journal.jsonl") {
  const auto& options = config.trajectory;
  schedule_ = trajectory_schedule(options);
  const bool wanted = options.every > 0 || options.log_spaced || !options.at.empty();
  if (!writes) return;
  const fs::path folder = run / "trajectory";
  if (!wanted) {
    // Switched off on the way: steps that are made anew may come out otherwise.
    if (trajectory::is_trajectory(folder))
      trajectory::Writer(folder, trajectory::read_index(folder).format, {}, keep_to);
    return;
  }
  const DiskModel model = disk_model(state.model());
  tensors_ = choose(config, model.views);
  trajectory::Format format;
  format.dtype = options.dtype == "bfloat16" ? checkpoints::hdf5::Type::bf16 : checkpoints::hdf5::Type::f32;
  format.codec = *trajectory::codec_from_name(options.codec);
  for (const auto& view : chosen(model.views)) format.tensors.push_back({view.name, view.shape});
  try {
    writer_ = std::make_unique<trajectory::Writer>(
        folder, format,
        trajectory::WriterOptions{.threads = at::get_num_threads(), .before_seal = [this] { sync_file(journal_); }},
        keep_to);
  } catch (const std::invalid_argument& error) {
    config.fail("trajectory", error.what());
  }
  background_ = std::make_unique<checkpoints::AsyncWriter>();
  background_->reserve(chosen(model.views));
}

TrajectoryHook::~TrajectoryHook() = default;

std::vector<checkpoints::TensorView> TrajectoryHook::chosen(const std::vector<checkpoints::TensorView>& views) const {
  std::vector<checkpoints::TensorView> list;
  for (const size_t t : tensors_) list.push_back(views[t]);
  return list;
}

void TrajectoryHook::step(State& state, bool checkpoint) {
  if (!writer_ || !schedule_.due(state.step)) return;
  const DiskModel model = disk_model(state.model());
  background_->save(chosen(model.views),
                    [this, step = state.step, checkpoint](std::span<const checkpoints::TensorView> snapshot) {
                      write([&] {
                        writer_->add(step, snapshot);
                        if (checkpoint) writer_->seal();
                      });
                    });
  unsealed_ = !checkpoint;
}

void TrajectoryHook::seal() {
  if (!unsealed_) return;
  background_->save({}, [this](std::span<const checkpoints::TensorView>) { write([this] { writer_->seal(); }); });
  unsealed_ = false;
}

void TrajectoryHook::write(const std::function<void()>& job) {
  try {
    job();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!lost_) lost_ = std::current_exception();
    throw;
  }
}

// The background writer tells its error to one caller; a checkpoint's thread may ask after the loop was told.
void TrajectoryHook::throw_lost() {
  const std::lock_guard lock(mutex_);
  if (lost_) std::rethrow_exception(lost_);
}

void TrajectoryHook::drain() {
  if (!writer_) return;
  background_->drain();
  throw_lost();
}

void TrajectoryHook::check() {
  if (!writer_) return;
  background_->check();
  throw_lost();
}

void TrajectoryHook::finish() {
  seal();
  drain();
}

}  // namespace cairn
