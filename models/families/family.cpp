#include "models/families/families.h"

namespace cairn::models {
namespace {

// ---- the table: one line a family ----
const Family* const kFamilies[] = {
    &deepseek_v3_family, &deepseek_v32_family, &gemma3_text_family, &glm4_moe_family,   &glm_moe_dsa_family,
    &gpt2_family,        &gpt_neox_family,     &gpt_oss_family,     &llama_family,      &llama_dsa_family,
    &mistral_family,     &mixtral_family,      &olmo2_family,       &olmo3_family,      &qwen2_family,
    &qwen3_family,       &qwen3_dsa_family,    &qwen3_moe_family,   &qwen3_next_family, &smollm3_family,
};

// ---- initialisations ----
// Where a block keeps the deviations of its matrices: of most, and of those whose product is added to the stream.
std::vector<std::pair<double*, double*>> deviations(BlockConfig& block) {
  std::vector<std::pair<double*, double*>> all{{&block.attention.init_std, &block.attention.out_init_std},
                                               {&block.feed_forward.init_std, &block.feed_forward.out_init_std}};
  if (block.mla) all.emplace_back(&block.mla->init_std, &block.mla->out_init_std);
  if (block.delta_net) all.emplace_back(&block.delta_net->init_std, &block.delta_net->out_init_std);
  if (block.experts) all.emplace_back(&block.experts->init_std, &block.experts->out_init_std);
  return all;
}
void keep(DecoderConfig&) {}
void scale_residual(DecoderConfig& config) {
  const double layers = static_cast<double>(config.blocks.size());
  for (auto* blocks : {&config.blocks, &config.mtp}) {
    for (BlockConfig& block : *blocks) {
      for (const auto& [std, out_std] : deviations(block)) *out_std = *std / std::sqrt(2 * layers);
    }
  }
}
struct Scheme {
  const char* name;
  void (*apply)(DecoderConfig&);
};
constexpr Scheme kSchemes[] = {{"default", keep}, {"normal", keep}, {"scaled", scale_residual}};

void initialisation(DecoderConfig& config, const nlohmann::ordered_json& json) {
  if (!json.contains("init") || json.at("init").is_null()) return;
  const nlohmann::ordered_json& init = json.at("init");
  std::string name = "default";
  if (init.is_string()) {
    name = init.get<std::string>();
  } else if (init.is_object()) {
    for (const auto& [key, value] : init.items()) {
      if (key == "name" && value.is_string()) {
        name = value.get<std::string>();
      } else if (key == "std" && value.is_number() && value.get<double>() > 0) {
        const double factor = value.get<double>() / config.init_std;
        config.init_std = value.get<double>();
        for (auto* blocks : {&config.blocks, &config.mtp}) {
          for (BlockConfig& block : *blocks) {
            for (const auto& [std, out_std] : deviations(block)) *std *= factor, *out_std *= factor;
            if (block.indexer) block.indexer->init_std *= factor;
          }
        }
      } else if (key != "std" || !value.is_null()) {
        throw ConfigError("init", fmt::format("found {}: {}, expected name (a text) and std (a number above zero)", key,
                                              value.dump()));
      }
    }
  } else {
    throw ConfigError("init", fmt::format("found {}, expected a name or a mapping", init.dump()));
  }
  for (const Scheme& scheme : kSchemes) {
    if (name == scheme.name) return scheme.apply(config);
  }
  throw ConfigError("init", fmt::format("found '{}', expected one of {}{}", name, fmt::join(init_names(), ", "),
                                        did_you_mean(name, init_names())));
}

// q, k, v stacked as [3 H D, ...] <-> interleaved head by head, [H, 3, D, ...].
at::Tensor interleave(const at::Tensor& stacked, int64_t heads, bool back) {
  auto sizes = stacked.sizes().vec();
  const int64_t width = sizes[0] / (3 * heads);
  std::vector<int64_t> split = back ? std::vector<int64_t>{heads, 3, width} : std::vector<int64_t>{3, heads, width};
  for (size_t i = 1; i < sizes.size(); ++i) split.push_back(sizes[i]);
  return stacked.reshape(split).transpose(0, 1).reshape(sizes);
}

bool of_experts(DiskLayout layout) {
  return layout == DiskLayout::experts_gate_up || layout == DiskLayout::experts_gate_up_bias ||
         layout == DiskLayout::experts_down || layout == DiskLayout::experts_down_bias;
}

// The stacked parameters of all experts <-> as gpt-oss has them on disk. E: experts.
at::Tensor experts_to_disk(const at::Tensor& stacked, DiskLayout layout, int64_t E) {
  const int64_t rows = stacked.size(0) / E;
  switch (layout) {
    case DiskLayout::experts_gate_up:  // [E, 2, F, C] -> [E, C, F, 2]
      return stacked.view({E, 2, rows / 2, -1}).permute({0, 3, 2, 1}).reshape({E, stacked.size(1), rows});
    case DiskLayout::experts_gate_up_bias:
      return stacked.view({E, 2, rows / 2}).transpose(1, 2).reshape({E, rows});
    case DiskLayout::experts_down:
      return stacked.view({E, rows, -1}).transpose(1, 2).contiguous();
    default:
      return stacked.view({E, rows});
  }
}
at::Tensor experts_from_disk(const at::Tensor& found, DiskLayout layout) {
  const int64_t E = found.size(0);
  switch (layout) {
    case DiskLayout::experts_gate_up:
      return found.reshape({E, found.size(1), found.size(2) / 2, 2}).permute({0, 3, 2, 1}).reshape({-1, found.size(1)});
    case DiskLayout::experts_gate_up_bias:
      return found.reshape({E, found.size(1) / 2, 2}).transpose(1, 2).reshape({-1});
    case DiskLayout::experts_down:
      return found.transpose(1, 2).reshape({-1, found.size(1)});
    default:
      return found.reshape({-1});
  }
}
// A parameter of gate and one of up for each expert, or one of down.
int64_t expert_count(const DiskTensor& tensor) {
  const bool both = tensor.layout == DiskLayout::experts_gate_up || tensor.layout == DiskLayout::experts_gate_up_bias;
  return static_cast<int64_t>(tensor.parameters.size()) / (both ? 2 : 1);
}

std::string shape_text(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

void check(const DecoderConfig& config) {
  for (const BlockConfig& block : config.blocks) {
    if (block.indexer && config.dropout > 0)
      throw ConfigError(
          "dropout", fmt::format("found {}, expected 0: attention over a chosen set has no dropout", config.dropout));
    const AttentionConfig& a = block.attention;
    if (a.num_attention_heads % a.num_key_value_heads) {
      throw ConfigError("num_key_value_heads", fmt::format("found {}, expected a divisor of num_attention_heads ({})",
                                                           a.num_key_value_heads, a.num_attention_heads));
    }
    if (!a.rope) continue;
    const int64_t R = a.rope->rotary_dim, rounded = R + R % 2;
    if (R < 1 || rounded > a.head_dim || (R % 2 && a.rope->rope_type == "yarn")) {
      throw ConfigError("rope_parameters", fmt::format("RoPE rotates {} of the {} features of a head: expected at "
                                                       "least 1, at most the head's, and pairs of them",
                                                       R, a.head_dim));
    }
  }
}

// One view over rows that follow one another in one leaf, else a copy.
at::Tensor stacked(const std::vector<const Parameter*>& parts) {
  if (parts.size() == 1) return parts[0]->value();
  int64_t rows = 0;
  bool adjacent = true;
  for (const Parameter* part : parts) {
    adjacent &= part->leaf.is_same(parts[0]->leaf) && part->first_row == parts[0]->first_row + rows;
    rows += part->rows;
  }
  if (adjacent) return parts[0]->leaf.detach().narrow(0, parts[0]->first_row, rows);
  std::vector<at::Tensor> values;
  for (const Parameter* part : parts) values.push_back(part->value());
  return at::cat(values);
}

// Weights that are dequantised when they are read, and written as they are then: MXFP4 (gpt-oss), and FP8 with a factor
// for each tile of 128 x 128 (DeepSeek-V3).
void quantization(ConfigReader& reader) {
  const char* key = "quantization_config";
  const auto found = reader.raw().find(key);
  const nlohmann::ordered_json settings =
      found != reader.raw().end() && found->is_object() ? *found : nlohmann::ordered_json::object();
  const nlohmann::ordered_json method = settings.value("quant_method", nlohmann::ordered_json());
  if (method != "mxfp4" && method != "fp8") {
    reader.require(key, nullptr, "expected quant_method mxfp4 or fp8; other quantized weights are not supported");
    return;
  }
  const nlohmann::ordered_json tile = settings.value("weight_block_size", nlohmann::ordered_json({128, 128}));
  if (method == "fp8" && tile != nlohmann::ordered_json({128, 128})) {
    throw ConfigError("quantization_config.weight_block_size",
                      fmt::format("found {}, expected [128, 128]", tile.dump()));
  }
  reader.ignore({key});
  reader.drop(key);
}

}  // namespace

std::vector<const Family*> families() { return {std::begin(kFamilies), std::end(kFamilies)}; }

const Family& family(const std::string& model_type) {
  std::vector<std::string> known;
  for (const Family* f : kFamilies) {
    if (model_type == f->model_type) return *f;
    known.push_back(f->model_type);
  }
  throw ConfigError("model_type", fmt::format("found '{}', expected one of {}{}", model_type, fmt::join(known, ", "),
                                              did_you_mean(model_type, known)));
}

std::vector<std::string> init_names() {
  std::vector<std::string> names;
  for (const Scheme& scheme : kSchemes) names.push_back(scheme.name);
  return names;
}

DecoderConfig decoder_config(const nlohmann::ordered_json& json, bool strict) {
  if (!json.is_object())
    throw ConfigError("model_type", fmt::format("found {}, expected a mapping that has it", json.dump()));
  ConfigReader reader(json, strict);
  const Family& f = family(reader.text("model_type", std::nullopt));
  quantization(reader);
  reader.require("add_cross_attention", false, "the decoder has no encoder beside it");
  reader.require("is_encoder_decoder", false, "the decoder has no encoder beside it");
  reader.ignore({"init", "architectures", "auto_map", "_name_or_path"});
  const double dropout = reader.number("dropout", 0.0);
  if (!(dropout >= 0 && dropout < 1))
    throw ConfigError("dropout", fmt::format("found {}, expected a rate from 0 to below 1", dropout));

  DecoderConfig config = f.from_config(reader);
  config.model_type = f.model_type;
  config.dropout = dropout;
  initialisation(config, json);
  if (const auto unknown = reader.unknown(); strict && !unknown.empty()) {
    const std::string near = did_you_mean(unknown[0], reader.known());
    throw ConfigError(unknown[0],
                      fmt::format("unknown key for model_type {}{}", f.model_type,
                                  near.empty() ? fmt::format("; it knows {}", fmt::join(reader.known(), ", ")) : near));
  }
  check(config);
  config.source = reader.resolved();
  config.source["architectures"] = {f.architecture};
  config.source["initializer_range"] = config.init_std;
  // Code and paths of the folder that this came from do not go along; a rate of zero needs no mention.
  for (const char* key : {"init", "auto_map", "_name_or_path"}) config.source.erase(key);
  if (dropout == 0) config.source.erase("dropout");
  return config;
}

nlohmann::ordered_json config_json(const DecoderConfig& config) { return config.source; }

std::vector<DiskTensor> disk_tensors(const DecoderConfig& config, const Parameters& parameters) {
  const Family& f = family(config.model_type);
  std::vector<DiskTensor> tensors;
  const auto named = [&](const std::string& name) {
    if (name.starts_with("mtp.")) return f.mtp_name(name, config);
    return f.rename ? f.rename(name) : name;
  };
  if (f.disk) {
    tensors = f.disk(config, parameters);
  } else {
    for (const Parameter& parameter : parameters.all()) tensors.push_back({named(parameter.name), {parameter.name}});
  }
  for (const Buffer& buffer : parameters.buffers())
    tensors.push_back({named(buffer.name), {buffer.name}, DiskLayout::plain, true});
  return tensors;
}

namespace {

std::vector<const Parameter*> parts_of(const DiskTensor& tensor, const Parameters& parameters) {
  std::vector<const Parameter*> parts;
  for (const std::string& name : tensor.parameters) parts.push_back(&parameters.at(name));
  return parts;
}

}  // namespace

std::vector<int64_t> disk_shape(const DiskTensor& tensor, const Parameters& parameters) {
  if (tensor.buffer) return parameters.buffer(tensor.parameters[0]).tensor.sizes().vec();
  const auto parts = parts_of(tensor, parameters);
  std::vector<int64_t> shape = parts[0]->leaf.sizes().vec();
  shape[0] = 0;
  for (const Parameter* part : parts) shape[0] += part->rows;
  if (tensor.layout == DiskLayout::transposed) std::swap(shape[0], shape[1]);
  if (of_experts(tensor.layout)) {
    const int64_t E = expert_count(tensor);
    const int64_t rows = shape[0] / E;
    shape = shape.size() == 2 ? std::vector<int64_t>{E, shape[1], rows} : std::vector<int64_t>{E, rows};
  }
  return shape;
}

at::Tensor to_disk(const DiskTensor& tensor, const DecoderConfig& config, const Parameters& parameters) {
  at::NoGradGuard no_grad;
  if (tensor.buffer) return parameters.buffer(tensor.parameters[0]).tensor;
  const at::Tensor value = stacked(parts_of(tensor, parameters));
  switch (tensor.layout) {
    case DiskLayout::plain:
      return value;
    case DiskLayout::transposed:
      return value.t().contiguous();
    case DiskLayout::neox_qkv:
      return interleave(value, config.blocks[0].attention.num_attention_heads, false);
    default:
      return experts_to_disk(value, tensor.layout, expert_count(tensor));
  }
  return value;
}

void from_disk(const DiskTensor& tensor, const at::Tensor& found, const DecoderConfig& config, Parameters& parameters) {
  at::NoGradGuard no_grad;
  if (const auto expected = disk_shape(tensor, parameters); found.sizes() != at::IntArrayRef(expected)) {
    throw std::runtime_error(fmt::format("tensor {}: found shape {}, expected {}", tensor.name,
                                         shape_text(found.sizes()), shape_text(expected)));
  }
  if (tensor.buffer) {
    parameters.buffer(tensor.parameters[0]).tensor.copy_(found);
    return;
  }
  at::Tensor value = found;
  if (tensor.layout == DiskLayout::transposed) value = found.t();
  if (tensor.layout == DiskLayout::neox_qkv)
    value = interleave(found, config.blocks[0].attention.num_attention_heads, true);
  if (of_experts(tensor.layout)) value = experts_from_disk(found, tensor.layout);
  int64_t row = 0;
  for (const Parameter* part : parts_of(tensor, parameters)) {
    part->value().copy_(value.narrow(0, row, part->rows));
    row += part->rows;
  }
}

}  // namespace cairn::models
