#include "trainer/state.h"

#include <cstring>
#include <set>

#include "optim/norm.h"
#include "trainer/device_digest.h"
#include "trainer/large_pages.h"
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

// What a rank owns of a parameter is called "name", or "name[from]" where it is the piece from element `from` on.
// Optimizers append the moment: "name[from].exp_avg" is a piece of "name.exp_avg".
std::pair<std::string, int64_t> whole_of(const std::string& name) {
  const size_t open = name.find('['), close = name.find(']');
  if (open == std::string::npos) return {name, 0};
  return {name.substr(0, open) + name.substr(close + 1), std::stoll(name.substr(open + 1))};
}

// Where the flat buffer may be cut so that every matrix stays whole: between parameters, and elsewhere as usual.
std::vector<int64_t> cuts_beside_matrices(const models::Parameters& parameters, int64_t& largest) {
  std::set<int64_t> cuts;
  for (const auto& parameter : parameters.all()) {
    const int64_t begin = parameter.offset, end = begin + parameter.numel();
    cuts.insert(begin);
    if (parameter.role == models::Role::matrix) {
      largest = std::max(largest, end - begin);
      continue;
    }
    for (int64_t at = optim::piece_count(begin) * optim::kPiece; at < end; at += optim::kPiece) cuts.insert(at);
  }
  return {cuts.begin(), cuts.end()};
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

std::vector<checkpoints::TensorView> weight_views(const models::Parameters& parameters) {
  std::vector<checkpoints::TensorView> views;
  for (const auto& parameter : parameters.all()) views.push_back(view_of(parameter.name, parameter.value()));
  for (const auto& buffer : parameters.buffers()) views.push_back(view_of(buffer.name, buffer.tensor));
  return views;
}

State::State(models::DecoderConfig config, at::ScalarType dtype, parallel::World& world, int lanes, int zero,
             bool whole_matrices, at::Device device)
    : world_(world), zero_(world.size > 1 ? zero : 0) {
  model_ = std::make_unique<models::Decoder>(std::move(config), dtype, device);
  const int64_t total = model_->parameters().flat().numel();
  use_large_pages(model_->parameters().flat());
  auto zeros = [&](at::ScalarType type) {
    const at::Tensor flat = at::empty({total}, at::TensorOptions(type).device(device));
    use_large_pages(flat);  // before the first touch
    return flat.zero_();
  };
  gradient_ = zeros(at::kFloat);
  leaf_gradient_ = dtype == at::kFloat ? gradient_ : zeros(dtype);
  model_->parameters().bind_gradients(leaf_gradient_);
  lane_tree_ = std::make_unique<parallel::LaneTree>(gradient_, lanes / world.size);
  int64_t target = 1 << 20, largest = 0;
  std::vector<int64_t> cuts;
  if (zero_ != 0 && whole_matrices) {
    cuts = cuts_beside_matrices(model_->parameters(), largest);
    target = std::max(target, largest * world.size);  // a matrix for every rank in each bucket
  }
  reducer_ =
      std::make_unique<parallel::Reducer>(world_, gradient_, parallel::plan_buckets(total, world.size, target, cuts),
                                          parallel::Reducer::Options{.gather = zero_ == 0});
}

std::vector<optim::Parameter> State::owned_parameters(bool whole, std::optional<models::Group> group) {
  const at::Tensor flat = model_->parameters().flat();
  std::vector<optim::Parameter> owned;
  for (const auto& parameter : model_->parameters().all()) {
    if (group && parameter.group != *group) continue;
    const int64_t begin = parameter.offset, end = begin + parameter.numel();
    const auto add_whole = [&] {
      owned.push_back({parameter.name, parameter.value(),
                       gradient_.narrow(0, begin, end - begin).view(parameter.value().sizes()),
                       role_of(parameter.role)});
    };
    if (whole || zero_ == 0) {
      add_whole();
      continue;
    }
    for (const auto& [offset, length] : reducer_->owned()) {
      const int64_t from = std::max(begin, offset), to = std::min(end, offset + length);
      if (from >= to) continue;
      if (from == begin && to == end) {
        add_whole();
        break;
      }
      owned.push_back({fmt::format("{}[{}]", parameter.name, from - begin), flat.narrow(0, from, to - from),
                       gradient_.narrow(0, from, to - from), role_of(parameter.role)});
    }
  }
  return owned;
}

void State::set_optimizer(const optim::OptimizerOptions& options, double ema) {
  optim::OptimizerOptions chosen = options;
  chosen.clear_grad = zero_ == 0;
  for (const auto& range : model_->parameters().groups()) {
    auto& place = optimizers_[range.group];
    std::map<std::string, at::Tensor> old;
    if (place) {
      for (const auto& [name, tensor] : place->state()) old[name] = tensor;
    }
    auto next = optim::make_optimizer(chosen, owned_parameters(false, range.group));
    const void* advised = nullptr;  // moments of many parameters lie in one memory
    for (auto& [name, tensor] : next->state()) {
      if (const void* memory = tensor.storage().data(); memory != std::exchange(advised, memory))
        use_large_pages(tensor);
      if (const auto found = old.find(name); found != old.end()) tensor.copy_(found->second);
    }
    next->set_step(place ? place->steps_done() : 0);
    place = std::move(next);
  }
  if (ema > 0 && !ema_) ema_.emplace(ema, owned_parameters(true, std::nullopt));
  if (ema == 0) ema_.reset();
}

nlohmann::ordered_json State::updates() {
  if (optimizers_.size() == 1) return optimizers_.begin()->second->steps_done();
  nlohmann::ordered_json all;
  for (const auto& [group, optimizer] : optimizers_) all[models::group_name(group)] = optimizer->steps_done();
  return all;
}

void State::set_updates(const nlohmann::ordered_json& updates) {
  for (auto& [group, optimizer] : optimizers_)
    optimizer->set_step(updates.is_number() ? updates.get<int64_t>()
                                            : updates.value(models::group_name(group), int64_t{0}));
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
  if (!device().is_cpu()) {
    std::vector<DigestPart> shared, own;
    for (const auto& parameter : model_->parameters().all()) shared.push_back({parameter.name, parameter.value()});
    for (const auto& buffer : model_->parameters().buffers()) shared.push_back({buffer.name, buffer.tensor});
    for (const StateTensor& t : extras()) (t.everywhere ? shared : own).push_back({t.name, t.tensor, t.first_index});
    checkpoints::Digest sum = digest_on_device(shared);
    if (zero_ == 0) return sum;
    for (const std::string& hex : world_.gather(digest_on_device(own).hex())) sum += checkpoints::Digest::from_hex(hex);
    return sum;
  }
  std::vector<checkpoints::TensorView> whole = weight_views(model_->parameters());
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state()) whole.push_back(view_of("ema." + name, tensor));
  }
  if (zero_ == 0) {
    for (const auto& [group, optimizer] : optimizers_)
      for (const auto& [name, tensor] : optimizer->state()) whole.push_back(view_of("optimizer." + name, tensor));
    return checkpoints::digest_tensors(whole);
  }
  // The pieces of all ranks add up.
  checkpoints::Digest pieces;
  for (const StateTensor& t : optimizer_tensors())
    pieces += checkpoints::digest_tensor(view_of(t.name, t.tensor), t.first_index);
  checkpoints::Digest sum = checkpoints::digest_tensors(whole);
  for (const std::string& hex : world_.gather(pieces.hex())) sum += checkpoints::Digest::from_hex(hex);
  return sum;
}

std::vector<StateTensor> State::optimizer_tensors() {
  std::vector<StateTensor> tensors;
  const auto& parameters = model_->parameters();
  for (const auto& [group, optimizer] : optimizers_) {
    for (const auto& [name, tensor] : optimizer->state()) {
      const auto [whole, from] = whole_of(name);
      std::vector<int64_t> shape = tensor.sizes().vec();
      if (whole != name) shape = parameters.at(name.substr(0, name.find('['))).value().sizes().vec();
      tensors.push_back({"optimizer." + whole, tensor, from, std::move(shape), zero_ == 0});
    }
  }
  return tensors;
}

std::vector<StateTensor> State::extras() {
  std::vector<StateTensor> tensors = optimizer_tensors();
  if (ema_) {
    for (const auto& [name, tensor] : ema_->state())
      tensors.push_back({"ema." + name, tensor, 0, tensor.sizes().vec()});
  }
  return tensors;
}

void State::load_extras(const std::function<at::Tensor(const std::string&)>& read) {
  at::NoGradGuard no_grad;
  std::map<std::string, std::vector<StateTensor>> pieces;  // of each whole tensor, which is read once
  for (StateTensor& t : extras()) pieces[t.name].push_back(std::move(t));
  for (const auto& [name, parts] : pieces) {
    const at::Tensor whole = read(name);
    const int64_t expected = c10::multiply_integers(parts.front().shape);
    if (whole.numel() != expected)
      throw std::runtime_error(fmt::format("{}: found {} elements, expected {}", name, whole.numel(), expected));
    for (const StateTensor& part : parts)
      part.tensor.view(-1).copy_(whole.reshape(-1).narrow(0, part.first_index, part.tensor.numel()));
  }
}

}  // namespace cairn
