// A model in a GGUF file as the rest of the program knows models: a config.json, tensors by their Hugging Face names,
// the files beside them. What the file says and Cairn would not follow is refused by name.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/gguf.h"
#include "checkpoints/safetensors.h"

namespace cairn {

// How llama.cpp's conversion changes a tensor.
enum class GgufLayout {
  plain,
  q_interleaved,  // rows of each head in the order of RoPE on neighbouring features: 2i and 2i + 1 were i and i + D/2
  k_interleaved,  // the same, by the heads of keys
  transposed,     // of a matrix that Hugging Face stores transposed (GPT-2's Conv1D)
  qkv_stacked,    // all of q, then k, then v, where GPT-NeoX has them head by head
};

// A tensor without its ".weight" or ".bias". Names of tensors in blocks go without "blk.N." and the prefix of a block.
struct GgufName {
  const char* gguf;
  const char* hugging_face;
  GgufLayout layout = GgufLayout::plain;
};

// general.architecture -> a family. `outer` and `inner`: the names outside of the blocks and in them.
struct GgufArchitecture {
  const char* name;
  const char* model_type;    // of config.json
  const char* block_prefix;  // "model.layers."
  std::vector<GgufName> outer, inner;
  double norm_shift = 0;  // is added to the weights of norms in the file (Gemma's are stored around one)
};

// The table, in order of name.
const std::vector<GgufArchitecture>& gguf_architectures();

// The row of a file. Throws std::runtime_error naming the file and what it holds where that is no model of the table.
const GgufArchitecture& gguf_architecture(const checkpoints::Gguf& file);

// config.json: as transformers would have it for the family. Throws std::runtime_error naming file and key on a setting
// that has no counterpart here; what the metadata leave out is read off the tensors.
nlohmann::ordered_json gguf_config(const checkpoints::Gguf& file);

// Its tensors by their Hugging Face names and in that layout, as float32, each made when it is asked for. Throws
// std::runtime_error naming file and tensor where one is unknown or of a type that is not read.
checkpoints::ModelWeights gguf_weights(const checkpoints::Gguf& file);

// What stands beside the weights in a model folder: config.json, generation_config.json, and of a file with a tokenizer
// tokenizer.json, tokenizer_config.json and chat_template.jinja. (name, bytes)
std::vector<std::pair<std::string, std::string>> gguf_folder_files(const std::filesystem::path& path);

}  // namespace cairn
