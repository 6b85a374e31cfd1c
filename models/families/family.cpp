#include "models/families/families.h"

namespace cairn::models {
namespace {

// ---- the table: one line a family ----
const Family* const kFamilies[] = {
    &llama_family,
};

// q, k, v stacked as [3 H D, ...] <-> interleaved head by head, [H, 3, D, ...].
at::Tensor interleave(const at::Tensor& stacked, int64_t heads, bool back) {
  auto sizes = stacked.sizes().vec();
  const int64_t width = sizes[0] / (3 * heads);
  std::vector<int64_t> split = back ? std::vector<int64_t>{heads, 3, width} : std::vector<int64_t>{3, heads, width};
  split.insert(split.end(), sizes.begin() + 1, sizes.end());
  return stacked.reshape(split).transpose(0, 1).reshape(sizes);
}

std::string shape_text(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

void check(const DecoderConfig& config) {
  for (const BlockConfig& block : config.blocks) {
    const AttentionConfig& a = block.attention;
    if (a.num_attention_heads % a.num_key_value_heads) {
      throw ConfigError("num_key_value_heads", fmt::format("found {}, expected a divisor of num_attention_heads ({})", a.num_key_value_heads, a.num_attention_heads));
    }
    if (a.rope && (a.rope->rotary_dim % 2 || a.rope->rotary_dim > a.head_dim)) {
      throw ConfigError("head_dim", fmt::format("{} rotated features of {}: expected an even number, at most head_dim", a.rope->rotary_dim, a.head_dim));
    }
  }
}

}  // namespace

std::vector<const Family*> families() { return {std::begin(kFamilies), std::end(kFamilies)}; }

const Family& family(const std::string& model_type) {
  std::string known;
  for (const Family* f : kFamilies) {
    if (model_type == f->model_type) return *f;
    known += (known.empty() ? "" : ", ") + std::string(f->model_type);
  }
  throw ConfigError("model_type", fmt::format("found '{}', expected one of {}", model_type, known));
}

DecoderConfig decoder_config(const nlohmann::ordered_json& json, bool strict) {
  ConfigReader reader(json);
  const Family& f = family(reader.text("model_type", std::nullopt));
  DecoderConfig config = f.from_config(reader);
  config.model_type = f.model_type;
  config.dropout = json.value("dropout", 0.0);
  const auto unknown = reader.unknown();
  if (strict && !unknown.empty()) {
    auto known = reader.known();
    throw ConfigError(unknown[0], fmt::format("unknown key for model_type {}; it knows {}", f.model_type, fmt::join(known, ", ")));
  }
  check(config);
  config.source = reader.resolved();
  config.source["architectures"] = {f.architecture};
  config.source.erase("init");
  return config;
}

nlohmann::ordered_json config_json(const DecoderConfig& config) { return config.source; }

std::vector<DiskTensor> disk_tensors(const DecoderConfig& config, const Parameters& parameters) {
  const Family& f = family(config.model_type);
  if (f.disk) return f.disk(config, parameters);
  std::vector<DiskTensor> tensors;
  for (const Parameter& parameter : parameters.all()) tensors.push_back({f.rename(parameter.name), {parameter.name}});
  return tensors;
}

at::Tensor to_disk(const DiskTensor& tensor, const DecoderConfig& config, const Parameters& parameters) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (const std::string& name : tensor.parameters) parts.push_back(parameters.at(name).value());
  at::Tensor value = parts.size() == 1 ? parts[0] : at::cat(parts);
  switch (tensor.layout) {
    case DiskLayout::plain: return value;
    case DiskLayout::transposed: return value.t().contiguous();
    case DiskLayout::neox_qkv: return interleave(value, config.blocks[0].attention.num_attention_heads, false).contiguous();
  }
  return value;
}

void from_disk(const DiskTensor& tensor, const at::Tensor& found, const DecoderConfig& config, Parameters& parameters) {
  at::NoGradGuard no_grad;
  const at::Tensor expected = to_disk(tensor, config, parameters);
  if (found.sizes() != expected.sizes()) {
    throw std::runtime_error(fmt::format("tensor {}: found shape {}, expected {}", tensor.name, shape_text(found.sizes()), shape_text(expected.sizes())));
  }
  at::Tensor value = found;
  if (tensor.layout == DiskLayout::transposed) value = found.t();
  if (tensor.layout == DiskLayout::neox_qkv) value = interleave(found, config.blocks[0].attention.num_attention_heads, true);
  int64_t row = 0;
  for (const std::string& name : tensor.parameters) {
    at::Tensor target = parameters.at(name).value();
    target.copy_(value.narrow(0, row, target.size(0)));
    row += target.size(0);
  }
}

int64_t head_width(const ConfigReader& reader, int64_t hidden_size, int64_t heads) {
  if (hidden_size % heads && !reader.has("head_dim")) {
    throw ConfigError("num_attention_heads", fmt::format("found {}, expected a divisor of hidden_size ({}) or a head_dim", heads, hidden_size));
  }
  return hidden_size / heads;
}

kernels::Activation activation(ConfigReader& reader, const std::string& key, const std::string& fallback) {
  const std::string name = reader.text(key, fallback);
  try {
    return kernels::activation_from_name(name);
  } catch (const std::invalid_argument& error) {
    throw ConfigError(key, error.what());
  }
}

}  // namespace cairn::models
