#include "trainer/probes/tensors.h"

#include "models/families/family.h"
#include "optim/norm.h"

namespace cairn {
namespace {

// The block of "model.layers.3.mlp.up_proj.weight"; -1: none.
int64_t block_of(const std::string& parameter) {
  const std::string prefix = "model.layers.";
  return parameter.starts_with(prefix) ? std::stoll(parameter.substr(prefix.size())) : -1;
}

}  // namespace

std::vector<NamedWeights> named_weights(const models::Decoder& model) {
  const models::Parameters& parameters = model.parameters();
  std::vector<NamedWeights> all{{"", {{0, parameters.flat().numel()}}}};
  for (size_t i = 0; i < model.config().blocks.size(); ++i) all.push_back({fmt::format("layer.{}", i), {}});
  for (const auto& parameter : parameters.all()) {
    if (const int64_t block = block_of(parameter.name); block >= 0)
      all.at(1 + block).stretches.emplace_back(parameter.offset, parameter.numel());
  }
  for (const auto& tensor : models::disk_tensors(model.config(), parameters)) {
    if (tensor.buffer) continue;
    NamedWeights named{tensor.name, {}};
    for (const std::string& name : tensor.parameters) {
      const auto& parameter = parameters.at(name);
      named.stretches.emplace_back(parameter.offset, parameter.numel());
    }
    all.push_back(std::move(named));
  }
  return all;
}

double squared_norm(const at::Tensor& flat, const NamedWeights& weights) {
  double sum = 0;
  for (const auto& [offset, length] : weights.stretches) {
    const at::Tensor part = flat.narrow(0, offset, length).to(at::kFloat).cpu();
    std::vector<double> pieces(optim::piece_count(length));
    optim::squared_norm_pieces(part, pieces.data());
    sum += optim::tree_sum(pieces.data(), pieces.size());
  }
  return sum;
}

double dot(const at::Tensor& a, const at::Tensor& b, const NamedWeights& weights) {
  double sum = 0;
  for (const auto& [offset, length] : weights.stretches) {
    sum += (a.narrow(0, offset, length).to(at::kDouble) * b.narrow(0, offset, length).to(at::kDouble))
               .sum()
               .item<double>();
  }
  return sum;
}

models::Decoder& refresh(std::unique_ptr<models::Decoder>& copy, const models::Decoder& model, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  if (!copy) copy = std::make_unique<models::Decoder>(model.config(), dtype, model.parameters().flat().device());
  copy->parameters().flat().copy_(model.parameters().flat());
  for (size_t i = 0; i < model.parameters().buffers().size(); ++i)
    copy->parameters().buffers()[i].tensor.copy_(model.parameters().buffers()[i].tensor);
  return *copy;
}

}  // namespace cairn
