#include "checkpoints/analysis/merge.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "checkpoints/analysis/elements.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;

// A nameless file of `bytes`, mapped for writing; its pages go to the disk as the system likes.
std::shared_ptr<void> map_scratch(const fs::path& folder, size_t bytes) {
  const auto fail = [&](const char* doing) {
    throw std::runtime_error(
        fmt::format("{}: {} a scratch file of {} bytes: {}", folder.string(), doing, bytes, std::strerror(errno)));
  };
  std::string name = (folder / ".tmp-merge-XXXXXX").string();
  const int fd = mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) fail("cannot create");
  unlink(name.c_str());
  const size_t length = std::max<size_t>(bytes, 1);
  // Allocated now: a disk that fills up later would end the program by a signal.
  if (const int error = posix_fallocate(fd, 0, static_cast<off_t>(length)); error != 0) {
    close(fd);
    errno = error;
    fail("no room for");
  }
  void* data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (data == MAP_FAILED) fail("cannot map");
  return {data, [length](void* p) { munmap(p, length); }};
}

std::string some(const std::vector<std::string>& names) {
  const size_t shown = std::min<size_t>(names.size(), 3);
  const std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + shown, ", "));
  return names.size() > shown ? fmt::format("{} and {} more", text, names.size() - shown) : text;
}

void check_agreement(const MergeInput& pattern, const MergeInput& model) {
  std::vector<std::string> missing, extra;
  for (const std::string& name : pattern.weights.names())
    if (!model.weights.contains(name)) missing.push_back(name);
  for (const std::string& name : model.weights.names())
    if (!pattern.weights.contains(name)) extra.push_back(name);
  if (!missing.empty() || !extra.empty()) {
    std::string what;
    if (!missing.empty()) what = fmt::format("it lacks {}", some(missing));
    if (!extra.empty()) what += fmt::format("{}it alone has {}", what.empty() ? "" : "; ", some(extra));
    throw std::runtime_error(fmt::format("{} has other tensors than {}: {}", model.name, pattern.name, what));
  }
  for (const std::string& name : pattern.weights.names()) {
    const TensorView &a = pattern.weights.info(name), &b = model.weights.info(name);
    if (a.shape != b.shape) {
      throw std::runtime_error(
          fmt::format("{}: tensor {} has shape [{}], but [{}] in {}: models of one shape alone can be merged",
                      model.name, name, fmt::join(b.shape, ", "), fmt::join(a.shape, ", "), pattern.name));
    }
    if (is_floating(a.dtype) && is_floating(b.dtype)) continue;
    if (a.dtype != b.dtype || std::memcmp(a.data, b.data, a.bytes()) != 0) {
      throw std::runtime_error(
          fmt::format("{}: tensor {} of type {} differs from that of {}; what is no weight must be equal", model.name,
                      name, dtype_name(b.dtype), pattern.name));
    }
  }
}

// sum of c_k model_k, block by block: each block is one thread's, so the result does not depend on their number.
void combine_linearly(const std::vector<double>& c, std::span<const TensorView> models, DType dtype, char* out) {
  const int64_t count = models.front().numel();
#pragma omp parallel for
  for (int64_t first = 0; first < count; first += kElementBlock) {
    std::array<double, kElementBlock> sum, values;
    const size_t length = std::min(kElementBlock, count - first);
    std::fill_n(sum.begin(), length, 0.0);
    for (size_t k = 0; k < models.size(); ++k) {
      if (c[k] == 0) continue;
      read_elements(models[k], first, {values.data(), length});
      for (size_t i = 0; i < length; ++i) sum[i] += c[k] * values[i];
    }
    write_elements({sum.data(), length}, dtype, out + first * dtype_size(dtype));
  }
}

}  // namespace

MergedWeights merge(const MergeSettings& settings, std::span<const MergeInput> models, const MergeInput* base,
                    std::optional<DType> dtype, const fs::path& scratch,
                    const std::function<void(size_t, size_t)>& progress) {
  const MergeMethod& method = check_merge(settings, models.size(), base != nullptr);
  const MergeInput& pattern = base ? *base : models.front();
  for (const MergeInput& model : models)
    if (&model != &pattern) check_agreement(pattern, model);

  MergedWeights result;
  std::vector<size_t> offsets;
  size_t bytes = 0;
  for (const std::string& name : pattern.weights.names()) {
    TensorView view = pattern.weights.info(name);
    view.name = name;
    if (dtype && is_floating(view.dtype)) view.dtype = *dtype;
    offsets.push_back(bytes);
    bytes += (view.bytes() + 63) / 64 * 64;
    result.views_.push_back(std::move(view));
  }
  result.scratch_ = map_scratch(scratch, bytes);
  const std::vector<double> c =
      method.coefficients ? method.coefficients(settings, models.size()) : std::vector<double>();
  for (size_t i = 0; i < result.views_.size(); ++i) {
    TensorView& view = result.views_[i];
    char* out = static_cast<char*>(result.scratch_.get()) + offsets[i];
    if (!is_floating(view.dtype)) {
      std::memcpy(out, view.data, view.bytes());
    } else {
      std::vector<TensorView> inputs;
      for (const MergeInput& model : models) inputs.push_back(model.weights.get(view.name));
      if (method.coefficients) {
        combine_linearly(c, inputs, view.dtype, out);
      } else {
        std::vector<double> values(view.numel());
        method.combine(settings, inputs, base ? &base->weights.get(view.name) : nullptr, values);
        write_elements(values, view.dtype, out);
      }
      for (const MergeInput& model : models) model.weights.release(view.name);
      if (base) base->weights.release(view.name);
    }
    view.data = out;
    if (progress) progress(i + 1, result.views_.size());
  }
  return result;
}

}  // namespace cairn::checkpoints
