// What parity_test.py compares with transformers: for each case of a request file the driver loads the model, computes
// and writes what it is asked for. One process for all cases.
//
//   parity_driver REQUEST.json
//   {"cases": [{"model": folder, "out": folder, "save": folder | null, "ids": [[...]], "segments": [[...]] | absent,
//   "positions": likewise,
//               "modes": [{"name", "reference", "products", "checkpointing", "gradients", "steps", "decode"}]}]}
//
// Per mode: OUT/NAME.safetensors with "logits" [B, T, V], "decode" [T, V] (row 0 through the cache, in pieces),
// "grad.<name on disk>", and OUT/NAME.json with "losses". A case with "refused" set writes OUT/error.txt.
#include <filesystem>
#include <fstream>
#include <iostream>

#include "models/layers/measured.h"
#include "optim/optimizer.h"
#include "trainer/model_io.h"

namespace {

using namespace cairn;
using nlohmann::ordered_json;

at::Tensor int_tensor(const ordered_json& rows) {
  std::vector<int32_t> flat;
  for (const auto& row : rows) {
    for (const auto& id : row) flat.push_back(id.get<int32_t>());
  }
  return at::tensor(flat, at::kInt);
}

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

// torch.optim.AdamW's defaults at lr 1e-3.
std::unique_ptr<optim::Optimizer> adamw(models::Decoder& decoder) {
  std::vector<optim::Parameter> parameters;
  for (const models::Parameter& p : decoder.parameters().all()) {
    if (p.group != models::Group::model) continue;  // transformers trains no indexer: not even its weights decay
    parameters.push_back({p.name, p.value(), p.grad(), role_of(p.role)});
  }
  optim::OptimizerOptions options;
  options.betas = {0.9, 0.999};
  options.weight_decay = 0.01;
  options.decay_roles = {"matrix", "embedding", "head", "norm", "bias"};
  return optim::make_optimizer(options, parameters);
}

// The gradient of router_aux_loss_coef * E * sum of f P with respect to the scores of a row, f and P pooled over the
// blocks; undefined where the model asks for no such loss.
at::Tensor balance_of(const models::Decoder& decoder, const at::Tensor& ids, models::Pass pass) {
  double coefficient = 0, blocks = 0;
  for (const auto& block : decoder.config().blocks) {
    if (!block.experts || block.experts->router_aux_loss_coef == 0) continue;
    coefficient = block.experts->router_aux_loss_coef, ++blocks;
  }
  if (coefficient == 0) return {};
  at::NoGradGuard no_grad;
  models::Measured measured;
  pass.measured = &measured;
  decoder.hidden(ids, pass);
  at::Tensor counts;
  for (const auto& [block, rows] : measured.experts) counts = counts.defined() ? counts + rows : rows;
  const double rows = blocks * static_cast<double>(pass.rows());
  return (counts.to(at::kDouble) * (coefficient * static_cast<double>(counts.numel()) / (rows * rows))).to(at::kFloat);
}

class Output {
 public:
  void add(const std::string& name, const at::Tensor& value) {
    kept_.push_back(value.to(at::kFloat).contiguous());
    views_.push_back({name, checkpoints::DType::F32, kept_.back().sizes().vec(), kept_.back().const_data_ptr()});
  }
  void write(const std::string& path) const { checkpoints::write_safetensors(path, views_); }

 private:
  std::vector<at::Tensor> kept_;
  std::vector<checkpoints::TensorView> views_;
};

void run_mode(const ordered_json& request, const ordered_json& mode) {
  const bool bf16 = mode.value("dtype", "float32") == std::string("bfloat16");
  const auto decoder = load_model(request.at("model"), bf16 ? at::kBFloat16 : at::kFloat);
  decoder->set_activation_checkpointing(mode.value("checkpointing", false));
  const auto& rows = request.at("ids");
  const int64_t B = rows.size(), T = rows.at(0).size();
  models::Pass pass;
  pass.batch = B, pass.length = T;
  pass.reference = mode.value("reference", false);
  pass.products = mode.value("products", "float32") == std::string("bfloat16") ? at::kBFloat16 : at::kFloat;
  const at::Tensor ids = int_tensor(rows);
  const bool packed = request.contains("segments");
  pass.positions = packed ? int_tensor(request.at("positions")) : at::arange(T, at::kInt).repeat({B});
  if (packed) pass.segments = int_tensor(request.at("segments"));

  // The target of a token is the next one of its document.
  at::Tensor targets = at::full({B, T}, -1, at::kInt);
  targets.narrow(1, 0, T - 1).copy_(ids.view({B, T}).narrow(1, 1, T - 1));
  if (packed) {
    const at::Tensor segments = pass.segments.view({B, T});
    targets.narrow(1, 0, T - 1).masked_fill_(segments.narrow(1, 0, T - 1) != segments.narrow(1, 1, T - 1), -1);
  }
  targets = targets.view({-1}).contiguous();
  const double count = targets.ge(0).sum().item<double>();

  Output output;
  ordered_json numbers;
  {
    at::NoGradGuard no_grad;
    const at::Tensor hidden = decoder->hidden(ids, pass);
    output.add("logits", decoder->logits(hidden, pass).view({B, T, -1}));
  }
  if (mode.value("decode", false)) {
    at::NoGradGuard no_grad;
    models::SequenceCache cache = decoder->make_cache(T);
    std::vector<at::Tensor> pieces;
    // A prompt, single tokens, and a piece of three in between.
    for (int64_t at = 0; at < T;) {
      const int64_t length = std::min(T - at, at == 0 ? T / 3 : (at % 5 == 0 ? int64_t{3} : int64_t{1}));
      models::Pass step;
      step.length = length;
      step.positions = at::arange(at, at + length, at::kInt);
      step.reference = pass.reference;
      step.products = pass.products;
      step.cache = &cache;
      pieces.push_back(decoder->logits(decoder->hidden(ids.narrow(0, at, length).contiguous(), step), step));
      at += length;
    }
    output.add("decode", at::cat(pieces));
  }
  const int64_t steps = mode.value("steps", int64_t{0});
  if (steps > 0 || mode.value("gradients", false)) {
    const at::Tensor flat_grad = at::zeros_like(decoder->parameters().flat());
    decoder->parameters().bind_gradients(flat_grad);
    auto loss = [&] {
      flat_grad.zero_();
      models::Pass balanced = pass;
      balanced.experts.balance = balance_of(*decoder, ids, pass);
      return decoder->loss(ids, targets, balanced, 1 / count, 0, true).nll / count;
    };
    numbers["loss"] = loss();
    // A decoder whose weights are the gradients puts them in the order and shape of the disk.
    models::Decoder gradients(decoder->config(), decoder->parameters().flat().scalar_type());
    gradients.parameters().flat().copy_(flat_grad);
    const DiskModel disk = disk_model(gradients);
    for (size_t i = 0; i < disk.views.size(); ++i) output.add("grad." + disk.views[i].name, disk.owners[i]);
    if (steps > 0) {
      const auto optimizer = adamw(*decoder);
      for (int64_t step = 0; step < steps; ++step) {
        numbers["losses"].push_back(loss());
        optimizer->step(1e-3);
      }
    }
  }
  const std::string base = request.at("out").get<std::string>() + "/" + mode.at("name").get<std::string>();
  output.write(base + ".safetensors");
  std::ofstream(base + ".json") << numbers.dump();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: parity_driver REQUEST.json\n";
    return 2;
  }
  ordered_json request;
  std::ifstream(argv[1]) >> request;
  for (const auto& one : request.at("cases")) {
    const std::string model = one.at("model"), out = one.at("out");
    try {
      std::filesystem::create_directories(out);
      if (one.contains("save") && !one.at("save").is_null())
        save_model(*load_model(model), one.at("save"), one.value("shard_bytes", checkpoints::kShardBytes));
      for (const auto& mode : one.value("modes", ordered_json::array())) run_mode(one, mode);
    } catch (const std::exception& error) {
      std::ofstream(out + "/error.txt") << error.what();
      if (!one.value("refused", false)) std::cerr << model << ": " << error.what() << "\n";
    }
  }
  return 0;
}
