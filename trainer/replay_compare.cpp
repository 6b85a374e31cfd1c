#include "trainer/replay_compare.h"

#include <cstring>

#include "checkpoints/pieces.h"
#include "trainer/model_io.h"

namespace cairn {
namespace {

using checkpoints::DType;
using checkpoints::TensorView;

std::string value_of(const TensorView& view, int64_t index) {
  const char* at = static_cast<const char*>(view.data) + index * checkpoints::dtype_size(view.dtype);
  if (view.dtype == DType::F32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return fmt::format("{:.9g}", value);
  }
  if (view.dtype == DType::BF16) {
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return fmt::format("{:.4g}", value);
  }
  uint64_t bits = 0;
  std::memcpy(&bits, at, checkpoints::dtype_size(view.dtype));
  return fmt::format("0x{:x}", bits);
}

// Adds what `replayed` and `stored` differ in.
void compare(const TensorView& stored, const TensorView& replayed, std::optional<TensorDifference>& first) {
  if (stored.dtype != replayed.dtype || stored.shape != replayed.shape) {
    if (!first) {
      first = TensorDifference{.name = replayed.name,
                               .stored = fmt::format("[{}]", fmt::join(stored.shape, ", ")),
                               .replayed = fmt::format("[{}]", fmt::join(replayed.shape, ", "))};
    }
    first->tensors += 1;
    return;
  }
  if (std::memcmp(stored.data, replayed.data, stored.bytes()) == 0) return;
  if (!first) {
    first = TensorDifference{.name = replayed.name, .index = -1, .numel = stored.numel()};
    const size_t size = checkpoints::dtype_size(stored.dtype);
    const char *a = static_cast<const char*>(stored.data), *b = static_cast<const char*>(replayed.data);
    for (int64_t i = 0; i < stored.numel(); ++i) {
      if (std::memcmp(a + i * size, b + i * size, size) == 0) continue;
      first->elements += 1;
      if (first->index < 0) first->index = i;
    }
    first->stored = value_of(stored, first->index);
    first->replayed = value_of(replayed, first->index);
  }
  first->tensors += 1;
}

}  // namespace

std::optional<TensorDifference> first_difference(State& state, const std::filesystem::path& folder) {
  std::optional<TensorDifference> first;
  const auto weights = checkpoints::ModelWeights::open(folder);
  const DiskModel model = disk_model(state.model());
  for (const TensorView& view : model.views) {
    if (weights.contains(view.name)) compare(weights.get(view.name), view, first);
  }
  if (!checkpoints::PiecedTensors::stored(folder / "training" / "optimizer")) return first;
  auto optimizer = checkpoints::PiecedTensors::open(folder / "training" / "optimizer");
  for (const auto& extra : state.extras()) {
    const at::Tensor tensor = extra.tensor.cpu().contiguous();
    if (optimizer.contains(extra.name)) compare(optimizer.get(extra.name), view_of(extra.name, tensor), first);
  }
  return first;
}

}  // namespace cairn
