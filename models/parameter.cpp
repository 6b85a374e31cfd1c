#include "models/parameter.h"

#include <numbers>

#include "models/random.h"

namespace cairn::models {

at::Tensor Parameter::value() const { return leaf.detach().narrow(0, first_row, rows); }

at::Tensor Parameter::grad() const {
  return leaf.grad().defined() ? leaf.grad().narrow(0, first_row, rows) : at::Tensor();
}

const char* group_name(Group group) { return group == Group::indexer ? "indexer" : "model"; }

at::Tensor Parameters::add_buffer(const std::string& name, std::vector<int64_t> shape, double value) {
  at::Tensor tensor = at::full(shape, value, at::kFloat);
  buffers_.push_back({name, tensor, value});
  return tensor;
}

at::Tensor Parameters::add(const std::string& name, std::vector<int64_t> shape, Role role, Init init) {
  at::Tensor leaf = at::empty(shape, at::kFloat).requires_grad_(true);
  by_name_[name] = parameters_.size();
  parameters_.push_back({name, role, init, leaf, 0, shape.at(0), 0, group_});
  leaves_.push_back(leaf);
  leaf_roles_.push_back(role);
  leaf_groups_.push_back(group_);
  numel_ += leaf.numel();
  return leaf;
}

at::Tensor Parameters::stack(const std::vector<Part>& parts, int64_t columns, Role role, Init init) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  const std::vector<int64_t> shape = columns ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{rows};
  at::Tensor leaf = at::empty(shape, at::kFloat).requires_grad_(true);
  int64_t first = 0;
  for (const Part& part : parts) {
    by_name_[part.name] = parameters_.size();
    parameters_.push_back({part.name, role, init, leaf, first, part.rows, 0, group_});
    first += part.rows;
  }
  leaves_.push_back(leaf);
  leaf_roles_.push_back(role);
  leaf_groups_.push_back(group_);
  numel_ += leaf.numel();
  return leaf;
}

void Parameters::flatten(at::ScalarType dtype, at::Device device) {
  at::NoGradGuard no_grad;
  leaf_offsets_.assign(leaves_.size(), 0);
  int64_t offset = 0;
  ranges_.clear();
  for (const Group group : kGroups) {
    if (std::find(leaf_groups_.begin(), leaf_groups_.end(), group) == leaf_groups_.end()) continue;
    offset = (offset + kGroupAlignment - 1) / kGroupAlignment * kGroupAlignment;
    const int64_t begin = offset;
    for (Role role : {Role::matrix, Role::embedding, Role::head, Role::norm, Role::bias}) {
      for (size_t i = 0; i < leaves_.size(); ++i) {
        if (leaf_roles_[i] != role || leaf_groups_[i] != group) continue;
        leaf_offsets_[i] = offset;
        offset += leaves_[i].numel();
      }
    }
    ranges_.push_back({group, begin, offset});
  }
  flat_ = at::empty({offset}, at::TensorOptions().dtype(dtype).device(device));
  for (size_t k = 1; k < ranges_.size(); ++k)
    flat_.narrow(0, ranges_[k - 1].end, ranges_[k].begin - ranges_[k - 1].end).zero_();
  for (size_t i = 0; i < leaves_.size(); ++i)
    leaves_[i].set_data(flat_.narrow(0, leaf_offsets_[i], leaves_[i].numel()).view(leaves_[i].sizes()));
  for (Buffer& buffer : buffers_) buffer.tensor.set_data(buffer.tensor.to(device));
  for (Parameter& parameter : parameters_) {
    for (size_t i = 0; i < leaves_.size(); ++i) {
      if (leaves_[i].is_same(parameter.leaf)) {
        parameter.offset = leaf_offsets_[i] + parameter.first_row * (parameter.leaf.numel() / parameter.leaf.size(0));
      }
    }
  }
}

void Parameters::bind_gradients(const at::Tensor& flat_grad) {
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (!leaves_[i].requires_grad()) continue;
    leaves_[i].mutable_grad() = flat_grad.narrow(0, leaf_offsets_[i], leaves_[i].numel()).view(leaves_[i].sizes());
  }
}

void Parameters::initialise(uint64_t seed) {
  at::NoGradGuard no_grad;
  for (const Buffer& buffer : buffers_) buffer.tensor.detach().fill_(buffer.value);
  for (const Parameter& parameter : parameters_) {
    at::Tensor value = parameter.value();
    if (parameter.init.kind == Init::Kind::constant) {
      value.fill_(parameter.init.value);
      continue;
    }
    // Box-Muller in double: element 2i and 2i+1 from one draw, so element k depends on (seed, name, k) alone.
    const Philox draws{seed, Purpose::init, hash_name(parameter.name.data(), parameter.name.size())};
    const int64_t count = value.numel();
    at::Tensor drawn = at::empty({count}, at::kFloat);
    float* out = drawn.data_ptr<float>();
    if (parameter.init.kind == Init::Kind::log_uniform) {
      for (int64_t i = 0; i < count; ++i) {
        const double low = parameter.init.value, high = parameter.init.high;
        out[i] = static_cast<float>(std::log(low + (high - low) * draws.uniform(i)));
      }
      value.copy_(drawn.view(value.sizes()));
      continue;
    }
    const double std = parameter.init.value;
    at::parallel_for(0, (count + 1) / 2, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto words = draws.block(i);
        const double u = (static_cast<double>(uint64_t{words[0]} << 21 ^ words[1] >> 11) + 0.5) * 0x1.0p-53;
        const double angle =
            2 * std::numbers::pi * (static_cast<double>(uint64_t{words[2]} << 21 ^ words[3] >> 11) * 0x1.0p-53);
        const double radius = std * std::sqrt(-2 * std::log(u));
        out[2 * i] = static_cast<float>(radius * std::cos(angle));
        if (2 * i + 1 < count) out[2 * i + 1] = static_cast<float>(radius * std::sin(angle));
      }
    });
    value.copy_(drawn.view(value.sizes()));
  }
}

const Buffer& Parameters::buffer(const std::string& name) const {
  for (const Buffer& buffer : buffers_) {
    if (buffer.name == name) return buffer;
  }
  throw std::out_of_range(fmt::format("no buffer '{}' in this model", name));
}

const Parameter& Parameters::at(const std::string& name) const {
  if (const auto found = by_name_.find(name); found != by_name_.end()) return parameters_[found->second];
  throw std::out_of_range(fmt::format("no parameter '{}' in this model", name));
}

}  // namespace cairn::models
