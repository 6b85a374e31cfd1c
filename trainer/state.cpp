#include "trainer/state.h"

#include <cstring>

#include "trainer/model_io.h"

namespace cairn {
namespace {

optim::Role role_of(models::Role role) {
  switch (role) {
    case models::Role::matrix:
      return optim::Role::matrix;
    case models::Role::embedding:
      return optim::Role::embedding;
    case models::Role::head:
      return optim::Role::head;
    case models::Role::norm:
      return optim::Role::norm;
    case models::Role::bias:
      return optim::Role::bias;
  }
  return optim::Role::other;
}

}  // namespace

checkpoints::TensorView view_of(const std::string& name, const at::Tensor& tensor) {
  return {name, disk_dtype(tensor.scalar_type()), tensor.sizes().vec(), tensor.const_data_ptr()};
}

at::Tensor tensor_of(const checkpoints::TensorView& view) {
  const auto options = at::TensorOptions().dtype(torch_dtype(view.dtype));
  at::Tensor copy = at::empty(view.shape, options);
  std::memcpy(copy.mutable_data_ptr(), view.data, view.bytes());
  return copy;
}

State::State(models::DecoderConfig config, at::ScalarType dtype, parallel::World& world, int lanes, int zero)
    : world_(world), zero_(world.size > 1 ? zero : 0) {
  model_ = std::make_unique<models::Decoder>(std::move(config), dtype);
  const int64_t total = model_->parameters().flat().numel();
  gradient_ = at::zeros({total}, at::kFloat);
  leaf_gradient_ = dtype == at::kFloat ? gradient_ : at::zeros({total}, dtype);
  model_->parameters().bind_gradients(leaf_gradient_);
  lane_tree_ = std::make_unique<parallel::LaneTree>(gradient_, lanes / world.size);
  reducer_ = std::make_unique<parallel::Reducer>(world_, gradient_, parallel::plan_buckets(total, world.size),
                                                 parallel::Reducer::Options{.gather = zero_ == 0});
}

std::vector<optim::Parameter> State::owned_parameters(bool whole) {
  const at::Tensor flat = model_->parameters().flat();
  std::vector<optim::Parameter> owned;
  for (const auto& parameter : model_->parameters().all()) {
    const int64_t begin = parameter.offset, end = begin + parameter.numel();
    if (whole || zero_ == 0) {
      owned.push_back({parameter.name, parameter.value(),
                       gradient_.narrow(0, begin, end - begin).view(parameter.value().sizes()),
                       role_of(parameter.role)});
      continue;
    }
    for (const auto& [offset, length] : reducer_->owned()) {
      const int64_t from = std::max(begin, offset), to = std::min(end, offset + length);
      if (from >= to) continue;
      // "name[from]": a piece of the parameter, from its element `from` on.
      owned.push_back({fmt::format("{}[{}]", parameter.name, from - begin), flat.narrow(0, from, to - from),
                       gradient_.narrow(0, from, to - from), role_of(parameter.role)});
    }
  }
  return owned;
}

void State::set_optimizer(const optim::OptimizerOptions& options, double ema) {
  std::map<std::string, at::Tensor> old;
  int64_t updates = 0;
  if (optimizer_) {
    for (const auto& [name, tensor] : optimizer_->state()) old[name] = tensor;
    updates = optimizer_->steps_done();
  }
  optim::OptimizerOptions chosen = options;
  chosen.clear_grad = zero_ == 0;
  auto next = optim::make_optimizer(chosen, owned_parameters(false));
  for (auto& [name, tensor] : next->state()) {
    if (const auto found = old.find(name); found != old.end()) tensor.copy_(found->second);
  }
  next->set_step(updates);
  optimizer_ = std::move(next);
  if (ema > 0 && !ema_) ema_.emplace(ema, owned_parameters(true));
  if (ema == 0) ema_.reset();
}

void State::collect_gradients() {
  if (leaf_gradient_.is_same(gradient_)) return;
  gradient_.add_(leaf_gradient_);
  leaf_gradient_.zero_();
}

void State::clear_gradients(bool updated) {
  if (!updated || zero_ != 0) gradient_.zero_();
}

void State::gather_weights() {
  if (zero_ != 0) reducer_->gather_owned(model_->parameters().flat());
}

checkpoints::Digest State::digest() {
  std::vector<checkpoints::TensorView> whole;
  for (const auto& parameter : model_->parameters().all()) whole.push_back(view_of(parameter.name, parameter.value()));
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state()) whole.push_back(view_of("ema." + name, tensor));
  }
  if (zero_ == 0) {
    for (const auto& [name, tensor] : optimizer_->state()) whole.push_back(view_of("optimizer." + name, tensor));
    return checkpoints::digest_tensors(whole);
  }
  // The pieces of all ranks add up.
  checkpoints::Digest pieces;
  for (const auto& [name, tensor] : optimizer_->state()) {
    const size_t open = name.find('['), close = name.find(']');
    const std::string full = "optimizer." + name.substr(0, open) + name.substr(close + 1);
    pieces += checkpoints::digest_tensor(view_of(full, tensor), std::stoll(name.substr(open + 1)));
  }
  checkpoints::Digest sum = checkpoints::digest_tensors(whole);
  for (const std::string& hex : world_.gather(pieces.hex())) sum += checkpoints::Digest::from_hex(hex);
  return sum;
}

std::vector<StateTensor> State::extras() {
  std::vector<StateTensor> tensors;
  if (zero_ == 0) {
    for (const auto& [name, tensor] : optimizer_->state()) tensors.push_back({"optimizer." + name, tensor});
  } else {
    // Each kind of moment is gathered into a flat buffer laid out as the weights are.
    std::map<std::string, at::Tensor> flats;
    for (const auto& [name, tensor] : optimizer_->state()) {
      const size_t open = name.find('['), close = name.find(']');
      at::Tensor& flat = flats[name.substr(close + 1)];
      if (!flat.defined()) flat = at::zeros_like(gradient_);
      const auto& parameter = model_->parameters().at(name.substr(0, open));
      flat.narrow(0, parameter.offset + std::stoll(name.substr(open + 1)), tensor.numel()).copy_(tensor.view(-1));
    }
    for (auto& [kind, flat] : flats) {
      reducer_->gather_owned(flat);
      for (const auto& parameter : model_->parameters().all()) {
        tensors.push_back({"optimizer." + parameter.name + kind,
                           flat.narrow(0, parameter.offset, parameter.numel()).view(parameter.value().sizes())});
      }
    }
  }
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state()) tensors.push_back({"ema." + name, tensor});
  }
  return tensors;
}

void State::load_extras(const std::function<at::Tensor(const std::string&)>& read) {
  at::NoGradGuard no_grad;
  for (auto [name, tensor] : optimizer_->state()) {
    int64_t from = 0;
    if (const size_t open = name.find('['); zero_ != 0 && open != std::string::npos) {
      const size_t close = name.find(']');
      from = std::stoll(name.substr(open + 1));
      name = name.substr(0, open) + name.substr(close + 1);
    }
    const at::Tensor whole = read("optimizer." + name);
    const bool fits = zero_ == 0 ? whole.sizes() == tensor.sizes() : whole.numel() >= from + tensor.numel();
    if (!fits)
      throw std::runtime_error(
          fmt::format("optimizer.{}: found {} elements, expected {}", name, whole.numel(), tensor.numel()));
    tensor.view(-1).copy_(whole.reshape(-1).narrow(0, from, tensor.numel()));
  }
  if (ema_) {
    for (auto [name, tensor] : ema_->state()) tensor.copy_(read("ema." + name).view(tensor.sizes()));
  }
}

}  // namespace cairn
