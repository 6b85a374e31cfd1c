#include "trainer/model_io.h"

#include <filesystem>

#include "checkpoints/file.h"
#include "checkpoints/gguf.h"
#include "trainer/dequantize.h"
#include "trainer/gguf_model.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using checkpoints::DType;
using checkpoints::TensorView;

struct TypePair {
  at::ScalarType torch;
  DType disk;
  const char* config_name;  // config.json: dtype
};
constexpr TypePair kTypes[] = {
    {at::kFloat, DType::F32, "float32"},
    {at::kDouble, DType::F64, "float64"},
    {at::kHalf, DType::F16, "float16"},
    {at::kBFloat16, DType::BF16, "bfloat16"},
    {at::kLong, DType::I64, "int64"},
    {at::kInt, DType::I32, "int32"},
    {at::kShort, DType::I16, "int16"},
    {at::kChar, DType::I8, "int8"},
    {at::kByte, DType::U8, "uint8"},
    {at::kBool, DType::BOOL, "bool"},
    {at::kFloat8_e4m3fn, DType::F8_E4M3, "float8_e4m3fn"},
    {at::kFloat8_e5m2, DType::F8_E5M2, "float8_e5m2"},
};

const TypePair& type_of(at::ScalarType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.torch == type) return pair;
  }
  throw std::invalid_argument(fmt::format("safetensors has no type for tensors of {}", c10::toString(type)));
}

// Buffers that older files hold: masks and tables that are computed here.
constexpr const char* kIgnoredEndings[] = {".attn.bias", ".attn.masked_bias", ".attention.bias",
                                           ".attention.masked_bias", ".rotary_emb.inv_freq"};

// Tensors of modules that predict further tokens in a model that is built without them (DeepSeek-V3, GLM-4.5: blocks
// beyond the model's own; Qwen3-Next: by their name).
bool predicts_further(const std::string& name, const models::DecoderConfig& config, const models::Family& family) {
  if (!config.mtp.empty()) return false;
  if (family.passed_over && name.starts_with(family.passed_over)) return true;
  const std::string prefix = "model.layers.";
  if (!name.starts_with(prefix)) return false;
  const auto& source = config.source;
  if (!source.contains("num_nextn_predict_layers") && !source.contains("num_mtp_layers")) return false;
  return std::stoll(name.substr(prefix.size())) >= static_cast<int64_t>(config.blocks.size());
}

// The parameter that a tensor of a module is a copy of; "": it is none.
std::string shared_with_module(const std::string& name, const models::DecoderConfig& config) {
  const std::string head = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  for (size_t m = 0; m < config.mtp.size(); ++m) {
    const std::string module = fmt::format("model.layers.{}.", config.blocks.size() + m);
    if (name == module + "embed_tokens.weight") return "model.embed_tokens.weight";
    if (name == module + "shared_head.head.weight") return head;
  }
  return "";
}

// Of which module a tensor is; -1: of none.
int64_t module_of(const models::DiskTensor& tensor) {
  const std::string& parameter = tensor.parameters.at(0);
  const std::string prefix = "mtp.layers.";
  return parameter.starts_with(prefix) ? std::stoll(parameter.substr(prefix.size())) : -1;
}

bool ignored(const std::string& name) {
  return std::any_of(std::begin(kIgnoredEndings), std::end(kIgnoredEndings),
                     [&](const char* ending) { return ("." + name).ends_with(ending); });
}

// The names under which a tensor may be found: as it is written, without the base model's prefix, and the head's other
// name.
std::vector<std::string> aliases(const std::string& name, const models::Family& family) {
  std::vector<std::string> names{name};
  if (name.starts_with(family.prefix)) names.push_back(name.substr(std::string_view(family.prefix).size()));
  if (name == "embed_out.weight") names.push_back("lm_head.weight");
  return names;
}

at::Tensor tensor_of(const TensorView& view) {
  return at::from_blob(const_cast<void*>(view.data), view.shape, at::TensorOptions().dtype(torch_dtype(view.dtype)));
}

bool is_weight(DType type) {
  return type == DType::F32 || type == DType::F64 || type == DType::F16 || type == DType::BF16;
}

std::string some(const std::vector<std::string>& names) {
  const size_t shown = std::min<size_t>(names.size(), 5);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + shown, ", "));
  return names.size() > shown ? fmt::format("{} and {} more", text, names.size() - shown) : text;
}

}  // namespace

DType disk_dtype(at::ScalarType type) { return type_of(type).disk; }

at::ScalarType torch_dtype(DType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.disk == type) return pair.torch;
  }
  throw std::invalid_argument(fmt::format("tensors of type {} are not supported", checkpoints::dtype_name(type)));
}

bool is_model(const fs::path& path) { return fs::exists(path / "config.json") || checkpoints::is_gguf(path); }

checkpoints::ModelWeights open_weights(const fs::path& path) {
  return checkpoints::is_gguf(path) ? gguf_weights(checkpoints::Gguf::open(path))
                                    : checkpoints::ModelWeights::open(path);
}

void write_companions(const fs::path& model, checkpoints::FolderCommit& target, bool with_config) {
  if (checkpoints::is_gguf(model)) {
    for (const auto& [name, bytes] : gguf_folder_files(model))
      if (with_config || name != "config.json") target.write(name, bytes);
    return;
  }
  constexpr const char* kExtensions[] = {".json", ".txt", ".jinja", ".model"};
  for (const auto& entry : fs::directory_iterator(model)) {
    const std::string name = entry.path().filename().string(), extension = entry.path().extension().string();
    const bool small = std::find(std::begin(kExtensions), std::end(kExtensions), extension) != std::end(kExtensions);
    if (!entry.is_regular_file() || !small || name == checkpoints::kManifestName || name.ends_with(".index.json"))
      continue;
    if (with_config || name != "config.json") target.copy(name, entry.path());
  }
}

nlohmann::ordered_json read_model_config(const std::string& folder) {
  if (checkpoints::is_gguf(folder)) return gguf_config(checkpoints::Gguf::open(folder));
  const fs::path path = fs::path(folder) / "config.json";
  if (!fs::exists(path)) {
    throw std::runtime_error(
        fmt::format("{}: there is no config.json in it: expected a model folder in the Hugging Face layout", folder));
  }
  try {
    return nlohmann::ordered_json::parse(checkpoints::read_file(path));
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(fmt::format("{}: not valid JSON: {}", path.string(), error.what()));
  }
}

int64_t modules_in(const nlohmann::ordered_json& json, const checkpoints::ModelWeights& weights) {
  const models::DecoderConfig config = models::decoder_config(json, false);
  const models::Family& family = models::family(config.model_type);
  for (size_t m = 0; m < config.mtp.size(); ++m) {
    const auto names = aliases(family.mtp_name(fmt::format("mtp.layers.{}.eh_proj.weight", m), config), family);
    if (std::none_of(names.begin(), names.end(), [&](const auto& name) { return weights.contains(name); })) return m;
  }
  return config.mtp.size();
}

void load_weights(models::Decoder& decoder, const checkpoints::ModelWeights& weights, const std::string& where,
                  bool without_indexer, bool new_modules) {
  const models::DecoderConfig& config = decoder.config();
  const models::Family& family = models::family(config.model_type);
  const int64_t modules =
      new_modules ? modules_in(models::config_json(config), weights) : static_cast<int64_t>(config.mtp.size());
  std::set<std::string> used;
  std::vector<std::string> missing, unexpected;
  for (const models::DiskTensor& tensor : models::disk_tensors(config, decoder.parameters())) {
    if (without_indexer && !tensor.buffer &&
        decoder.parameters().at(tensor.parameters[0]).group == models::Group::indexer)
      continue;
    if (module_of(tensor) >= modules) continue;
    const auto names = aliases(tensor.name, family);
    const auto name =
        std::find_if(names.begin(), names.end(), [&](const std::string& n) { return weights.contains(n); });
    if (name == names.end()) {
      const std::string blocks = tensor.name + "_blocks", scales = tensor.name + "_scales";
      if (!weights.contains(blocks) || !weights.contains(scales)) {
        missing.push_back(tensor.name);
        continue;
      }
      used.insert(blocks), used.insert(scales);
      models::from_disk(tensor, from_mxfp4(tensor_of(weights.get(blocks)), tensor_of(weights.get(scales))), config,
                        decoder.parameters());
      continue;
    }
    used.insert(*name);
    const TensorView& view = weights.get(*name);
    const std::string factors = *name + "_scale_inv";
    const bool tiled = view.dtype == DType::F8_E4M3 && weights.contains(factors);
    if (!tiled && !is_weight(view.dtype)) {
      throw std::runtime_error(
          fmt::format("{}: tensor {} has type {}, expected F32, F16, BF16, F64, or F8_E4M3 with {} beside it", where,
                      *name, checkpoints::dtype_name(view.dtype), factors));
    }
    try {
      at::Tensor value = tensor_of(view);
      if (tiled) used.insert(factors), value = from_fp8(value, tensor_of(weights.get(factors)));
      models::from_disk(tensor, value, config, decoder.parameters());
      weights.release(*name);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(fmt::format("{}: {}; does config.json belong to these weights?", where, error.what()));
    }
  }
  for (const std::string& name : weights.names()) {
    if (used.contains(name) || ignored(name) || predicts_further(name, config, family)) continue;
    if (const std::string shared = shared_with_module(name, config); !shared.empty()) {
      const at::Tensor value = decoder.parameters().at(shared).value();
      const at::Tensor copy = tensor_of(weights.get(name)).to(value.scalar_type());
      if (copy.sizes() != value.sizes() || !at::equal(copy, value.to(at::kCPU))) {
        throw std::runtime_error(
            fmt::format("{}: {} differs from {}, which the modules that predict further tokens share here; with "
                        "num_nextn_predict_layers: 0 in config.json the model is read without them",
                        where, name, shared));
      }
      continue;
    }
    const bool head = name == "lm_head.weight" || name == "embed_out.weight";
    if (!head || !config.tie_word_embeddings) {
      unexpected.push_back(name);
      continue;
    }
    // A tied head may be written out; another one would be lost.
    const at::Tensor table = decoder.parameters().at("model.embed_tokens.weight").value();
    const at::Tensor found = tensor_of(weights.get(name)).to(table.scalar_type());
    if (found.sizes() != table.sizes() || !at::equal(found, table.to(at::kCPU))) {
      throw std::runtime_error(
          fmt::format("{}: {} differs from the embedding, but config.json says tie_word_embeddings: true; set it to "
                      "false to keep both",
                      where, name));
    }
  }
  if (!missing.empty()) {
    throw std::runtime_error(
        fmt::format("{}: {} of the tensors that {} needs are missing: {}{}", where, missing.size(), config.model_type,
                    some(missing), unexpected.empty() ? "" : fmt::format(" (and not expected: {})", some(unexpected))));
  }
  if (!unexpected.empty()) {
    throw std::runtime_error(fmt::format("{}: {} tensors are none of {}'s as config.json describes it: {}", where,
                                         unexpected.size(), config.model_type, some(unexpected)));
  }
}

std::unique_ptr<models::Decoder> load_model(const std::string& folder, at::ScalarType dtype, at::Device device) {
  nlohmann::ordered_json json = read_model_config(folder);
  models::DecoderConfig config;
  const auto configure = [&] {
    try {
      config = models::decoder_config(json, false);
    } catch (const models::ConfigError& error) {
      throw models::ConfigError(
          error.key, fmt::format("{}{}: {}: {}", folder, checkpoints::is_gguf(folder) ? "" : "/config.json", error.key,
                                 error.what()));
    }
  };
  configure();
  const auto weights = open_weights(folder);
  if (!config.mtp.empty() && modules_in(json, weights) == 0) {
    json["num_nextn_predict_layers"] = 0;
    configure();
  }
  auto decoder = std::make_unique<models::Decoder>(std::move(config), dtype, device);
  load_weights(*decoder, weights, folder);
  return decoder;
}

DiskModel disk_model(const models::Decoder& decoder) {
  DiskModel model;
  for (const models::DiskTensor& tensor : models::disk_tensors(decoder.config(), decoder.parameters())) {
    const at::Tensor value = models::to_disk(tensor, decoder.config(), decoder.parameters()).to(at::kCPU).contiguous();
    model.views.push_back({tensor.name, disk_dtype(value.scalar_type()), value.sizes().vec(), value.const_data_ptr()});
    model.owners.push_back(value);
  }
  return model;
}

std::string config_text(const models::Decoder& decoder) {
  nlohmann::ordered_json json = models::config_json(decoder.config());
  json.erase("torch_dtype");
  json["dtype"] = type_of(decoder.parameters().flat().scalar_type()).config_name;
  return json.dump(2) + "\n";
}

std::string generation_config_text(const models::Decoder& decoder) {
  const nlohmann::ordered_json config = models::config_json(decoder.config());
  nlohmann::ordered_json json{{"_from_model_config", true}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (config.contains(key) && !config.at(key).is_null()) json[key] = config.at(key);
  }
  return json.dump(2) + "\n";
}

void save_model(const models::Decoder& decoder, const std::string& folder, uint64_t shard_bytes) {
  fs::create_directories(folder);
  checkpoints::write_model(folder, disk_model(decoder).views, {{"format", "pt"}}, shard_bytes);
  checkpoints::replace_file(fs::path(folder) / "generation_config.json", generation_config_text(decoder));
  checkpoints::replace_file(fs::path(folder) / "config.json", config_text(decoder));
}

}  // namespace cairn
