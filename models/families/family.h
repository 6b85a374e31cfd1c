// A model family: Hugging Face's config.json and tensor names <-> DecoderConfig and the decoder's parameters.
// To add one: a file beside this one that defines a Family, and a line in the table of family.cpp.
#pragma once

#include <functional>

#include "models/decoder.h"
#include "models/families/config_reader.h"

namespace cairn::models {

// How a tensor on disk relates to the parameters that it holds.
enum class DiskLayout {
  plain,       // the parameters stacked along dimension 0
  transposed,  // the stacked matrix, transposed (GPT-2's Conv1D)
  neox_qkv,    // q, k, v interleaved head by head: [H, 3, D, ...] (GPT-NeoX)
  // gpt-oss: all experts in one, transposed; the columns of gate and up interleaved.
  experts_gate_up,       // [E, C, 2F]
  experts_gate_up_bias,  // [E, 2F]
  experts_down,          // [E, F, C]
  experts_down_bias,     // [E, C]
};

struct DiskTensor {
  std::string name;                     // in the safetensors file
  std::vector<std::string> parameters;  // of the decoder, in stacking order
  DiskLayout layout = DiskLayout::plain;
  bool buffer = false;  // `parameters` names a buffer
};

struct Family {
  const char* model_type;    // config.json: model_type
  const char* architecture;  // config.json: architectures[0]
  const char* prefix;        // of the base model's tensors; folders that hold the base model alone leave it out
  // Reads every key that the family knows; throws ConfigError.
  DecoderConfig (*from_config)(ConfigReader& reader);
  // The decoder's name of a parameter -> its name on disk; families whose tensors are fused or transposed give `disk`
  // instead.
  std::string (*rename)(const std::string& parameter);
  std::vector<DiskTensor> (*disk)(const DecoderConfig& config, const Parameters& parameters);
  // model_type of the same model without its indexer: a run may start from its weights, and export drops the indexer.
  const char* without_indexer = nullptr;
  // Begins the names of tensors that published files hold and this model has not; null: there are none.
  const char* passed_over = nullptr;
  // The name on disk of a parameter of a module that predicts further tokens (`mtp.layers.0...`); null: the family has
  // none.
  std::string (*mtp_name)(const std::string& parameter, const DecoderConfig& config) = nullptr;
};

// The table of families, in order of name.
std::vector<const Family*> families();
// Throws ConfigError("model_type") naming the value, the near ones and all there are.
const Family& family(const std::string& model_type);

// Builds a DecoderConfig from the contents of a config.json (or the model section of a run file, which may hold
// `dropout` and `init` besides). `strict`: a key that nobody knows is an error (what a user typed); else it is passed
// on (what a hub folder holds). Throws ConfigError.
DecoderConfig decoder_config(const nlohmann::ordered_json& config, bool strict);

// Initialisations by name, `init: NAME` or `init: {name: NAME, std: S}`; std (else the family's initializer_range) is
// that of matrices and embeddings:
//   default  as transformers initialises the family (also called normal)
//   scaled   the same, and what is added to the residual stream divided by sqrt(2 * layers) (GPT-2's scheme, for every
//   family)
std::vector<std::string> init_names();

// config.json of a decoder: transformers loads it.
nlohmann::ordered_json config_json(const DecoderConfig& config);

// Every tensor on disk of this decoder, in order.
std::vector<DiskTensor> disk_tensors(const DecoderConfig& config, const Parameters& parameters);
// Its shape on disk.
std::vector<int64_t> disk_shape(const DiskTensor& tensor, const Parameters& parameters);
// The tensor to write, detached and contiguous: a view of the parameters where the layout allows it, else a copy.
at::Tensor to_disk(const DiskTensor& tensor, const DecoderConfig& config, const Parameters& parameters);
// Copies what was read into the parameters, converting the type. Throws std::runtime_error naming the tensor, the shape
// found and the one expected.
void from_disk(const DiskTensor& tensor, const at::Tensor& value, const DecoderConfig& config, Parameters& parameters);

}  // namespace cairn::models
