// Models in the Hugging Face layout: a folder with config.json and model.safetensors (or shards and their index) <-> a
// Decoder. Where a folder is read, a GGUF file may stand in its place.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"
#include "models/families/family.h"

namespace cairn {

// The element type that safetensors gives a tensor's type, and back. Throws std::invalid_argument naming a type that
// has no counterpart.
checkpoints::DType disk_dtype(at::ScalarType type);
at::ScalarType torch_dtype(checkpoints::DType type);

// A model folder (it has a config.json) or a GGUF file.
bool is_model(const std::filesystem::path& path);

// Its weights: of a folder, a .safetensors file or an index as ModelWeights::open reads them, of a GGUF file by their
// Hugging Face names.
checkpoints::ModelWeights open_weights(const std::filesystem::path& path);

// What stands beside the weights goes into `target` under its name: config.json where `with_config`, tokenizer,
// templates, whatever else is small and no weight.
void write_companions(const std::filesystem::path& model, checkpoints::FolderCommit& target, bool with_config);

// config.json of a model folder. Throws std::runtime_error naming the file where it is missing or malformed.
nlohmann::ordered_json read_model_config(const std::string& folder);

// The model in `folder`, its weights converted to `dtype` (F64, F32, F16 and BF16 on disk). Throws models::ConfigError
// on a setting that is not supported (its message names the file), std::runtime_error on tensors that are missing,
// unexpected or of another shape (all named), and on pickled weights, saying how to convert them. A tied lm_head.weight
// may be there or not; buffers that older files hold (attention masks, rotary tables) and names without the base
// model's prefix are fine. Where config.json has num_nextn_predict_layers and the folder no tensor of such modules (as
// transformers writes it) the model is built without them. Copies of embedding and head that modules on the Hub come
// with have to equal those of the model, which they share here; they are not written again.
std::unique_ptr<models::Decoder> load_model(const std::string& folder, at::ScalarType dtype = at::kFloat,
                                            at::Device device = at::kCPU);

// The same into a decoder that stands already. `where` heads the error messages. `without_indexer`: the weights are
// those of the same model without its indexers, which stay as they are; `new_modules`: so do modules that predict
// further tokens of which the weights have nothing.
void load_weights(models::Decoder& decoder, const checkpoints::ModelWeights& weights, const std::string& where,
                  bool without_indexer = false, bool new_modules = false);

// How many of the modules that `config` (a config.json) speaks of `weights` hold, counted from the first one up to the
// first that is not there. Throws models::ConfigError.
int64_t modules_in(const nlohmann::ordered_json& config, const checkpoints::ModelWeights& weights);

// A model's tensors as they lie on disk: names, shapes and order of the family. Where the layout is that of the
// parameters the views look into the flat buffer itself (so they change with it); else `owners` hold copies made now.
struct DiskModel {
  std::vector<checkpoints::TensorView> views;
  std::vector<at::Tensor> owners;
};
DiskModel disk_model(const models::Decoder& decoder);

// config.json and generation_config.json of a decoder as text; `dtype` is that of its parameters. transformers loads
// both.
std::string config_text(const models::Decoder& decoder);
std::string generation_config_text(const models::Decoder& decoder);

// Writes config.json, generation_config.json and model.safetensors (shards where it is larger than `shard_bytes`) into
// `folder`, which is created. Each file appears whole or not at all; a folder that appears whole is
// checkpoints::FolderCommit's business.
void save_model(const models::Decoder& decoder, const std::string& folder,
                uint64_t shard_bytes = checkpoints::kShardBytes);

}  // namespace cairn
