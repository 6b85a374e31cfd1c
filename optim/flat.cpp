#include "optim/flat.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>

namespace cairn::optim {
namespace {

constexpr int64_t kBlock = 1 << 15;  // elements: 128 KiB of each buffer, small beside what the caches share out

void check(const Parameter& parameter) {
  const auto& [name, tensor, grad, role] = parameter;
  if (!tensor.defined() || !grad.defined())
    throw std::invalid_argument(fmt::format("optimizer: parameter '{}' has no {}; give every trained parameter both",
                                            name, tensor.defined() ? "gradient" : "tensor"));
  if (tensor.scalar_type() != at::kFloat && tensor.scalar_type() != at::kBFloat16)
    throw std::invalid_argument(fmt::format("optimizer: parameter '{}' is {}; expected float32 or bfloat16", name,
                                            c10::toString(tensor.scalar_type())));
  if (grad.scalar_type() != at::kFloat || grad.numel() != tensor.numel() || grad.device() != tensor.device())
    throw std::invalid_argument(
        fmt::format("optimizer: the gradient of '{}' is {} of {} elements; expected float32 of {} on the same device",
                    name, c10::toString(grad.scalar_type()), grad.numel(), tensor.numel()));
  if (!tensor.is_contiguous() || !grad.is_contiguous())
    throw std::invalid_argument(fmt::format("optimizer: parameter '{}' or its gradient is not contiguous", name));
}

}  // namespace

double weight_decay_of(const OptimizerOptions& options, Role role) {
  const auto& roles = options.decay_roles;
  return std::find(roles.begin(), roles.end(), role_name(role)) != roles.end() ? options.weight_decay : 0.0;
}

FlatState::FlatState(std::vector<Parameter> parameters, const OptimizerOptions& options,
                     std::vector<std::string> state_names)
    : names_(std::move(state_names)), fast_(!options.reference) {
  int64_t total = 0;
  for (const auto& parameter : parameters) {
    check(parameter);
    total += parameter.tensor.numel();
    fast_ = fast_ && parameter.tensor.is_cpu();
  }
  if (!parameters.empty()) device_ = parameters.front().tensor.device();
  for (const auto& parameter : parameters) {
    if (parameter.tensor.device() != device_)
      throw std::invalid_argument(fmt::format("optimizer: parameter '{}' lies on {}, those before it on {}",
                                              parameter.name, parameter.tensor.device().str(), device_.str()));
  }
  on_device_ = !options.reference && !device_.is_cpu();
  for (size_t k = 0; k < names_.size(); ++k)
    buffers_.push_back(at::zeros({total}, at::TensorOptions(at::kFloat).device(device_)));

  int64_t offset = 0;
  for (auto& parameter : parameters) {
    Slot slot{std::move(parameter), 0, {}};
    const int64_t n = slot.parameter.tensor.numel();
    slot.weight_decay = weight_decay_of(options, slot.parameter.role);
    for (auto& buffer : buffers_) slot.state.push_back(buffer.narrow(0, offset, n).view(slot.parameter.tensor.sizes()));
    slots_.push_back(std::move(slot));
    offset += n;
  }

  for (const auto& slot : slots_) {
    kernels::Run run;
    run.p = slot.parameter.tensor.data_ptr();
    run.g = slot.parameter.grad.data_ptr<float>();
    run.m = !slot.state.empty() ? slot.state[0].data_ptr<float>() : nullptr;
    run.v = slot.state.size() > 1 ? slot.state[1].data_ptr<float>() : nullptr;
    run.n = slot.parameter.tensor.numel();
    run.bf16 = slot.parameter.tensor.scalar_type() == at::kBFloat16;
    if (run.n == 0) continue;
    if (!stretches_.empty()) {
      Stretch& last = stretches_.back();
      const int64_t width = run.bf16 ? 2 : 4;
      // State adjoins by construction.
      if (last.weight_decay == slot.weight_decay && last.run.bf16 == run.bf16 &&
          static_cast<char*>(last.run.p) + last.run.n * width == run.p && last.run.g + last.run.n == run.g) {
        last.run.n += run.n;
        continue;
      }
    }
    stretches_.push_back({run, slot.weight_decay});
  }
}

std::vector<std::pair<std::string, at::Tensor>> FlatState::state() const {
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (const auto& slot : slots_)
    for (size_t k = 0; k < names_.size(); ++k)
      result.emplace_back(slot.parameter.name + "." + names_[k], slot.state[k]);
  return result;
}

void for_blocks(const std::vector<FlatState::Stretch>& stretches,
                const std::function<void(const kernels::Run&)>& pass) {
  std::vector<int64_t> first_block(1, 0);  // of each stretch
  for (const auto& stretch : stretches)
    first_block.push_back(first_block.back() + (stretch.run.n + kBlock - 1) / kBlock);
  at::parallel_for(0, first_block.back(), 1, [&](int64_t begin, int64_t end) {
    size_t s = std::upper_bound(first_block.begin(), first_block.end(), begin) - first_block.begin() - 1;
    for (int64_t block = begin; block < end; ++block) {
      while (block >= first_block[s + 1]) ++s;
      kernels::Run run = stretches[s].run;
      const int64_t skip = (block - first_block[s]) * kBlock;
      run.p = static_cast<char*>(run.p) + skip * (run.bf16 ? 2 : 4);
      run.g += skip;
      if (run.m != nullptr) run.m += skip;
      if (run.v != nullptr) run.v += skip;
      run.n = std::min(kBlock, run.n - skip);
      pass(run);
    }
  });
}

void for_range(int64_t n, const std::function<void(int64_t, int64_t)>& pass) {
  at::parallel_for(0, (n + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) pass(block * kBlock, std::min(n, (block + 1) * kBlock));
  });
}

}  // namespace cairn::optim
