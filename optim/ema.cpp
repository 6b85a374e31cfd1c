#include "optim/ema.h"

#include <fmt/format.h>

#include "optim/flat.h"
#include "optim/kernels/passes.h"
#include "optim/kernels/ref/passes.h"

namespace cairn::optim {

Ema::Ema(double decay, std::vector<Parameter> parameters) : decay_(decay), parameters_(std::move(parameters)) {
  if (!(decay >= 0 && decay < 1)) throw std::invalid_argument(fmt::format("optim.ema: {} is not in [0, 1)", decay));
  int64_t total = 0, offset = 0;
  for (const auto& p : parameters_) total += p.tensor.numel();
  if (total > 0) flat_ = at::empty({total}, at::TensorOptions(at::kFloat).device(parameters_.front().tensor.device()));
  for (const auto& p : parameters_) {
    views_.push_back(flat_.narrow(0, offset, p.tensor.numel()).view(p.tensor.sizes()));
    views_.back().copy_(p.tensor.detach());
    offset += p.tensor.numel();
  }
}

void Ema::update() {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& p = parameters_[i].tensor;
    if (!p.is_cpu()) {
      kernels::ref::ema(views_[i], p, 1 - decay_);
      continue;
    }
    const bool bf16 = p.scalar_type() == at::kBFloat16;
    float* e = views_[i].data_ptr<float>();
    const char* from = static_cast<const char*>(p.const_data_ptr());
    for_range(p.numel(), [&](int64_t begin, int64_t end) {
      kernels::ema(e + begin, from + begin * (bf16 ? 2 : 4), bf16, end - begin, static_cast<float>(1 - decay_));
    });
  }
}

std::vector<std::pair<std::string, at::Tensor>> Ema::state() {
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (size_t i = 0; i < parameters_.size(); ++i) result.emplace_back(parameters_[i].name, views_[i]);
  return result;
}

}  // namespace cairn::optim
