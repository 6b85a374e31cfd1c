// The tokenizer in a GGUF file's metadata as a tokenizer.json, which the official library loads too.
#pragma once

#include <optional>
#include <string>

#include "checkpoints/gguf.h"

namespace cairn::data {

struct GgufTokenizer {
  std::string json;                          // tokenizer.json
  std::string config;                        // tokenizer_config.json
  std::optional<std::string> chat_template;  // tokenizer.chat_template, Jinja
};

bool has_gguf_tokenizer(const checkpoints::Gguf& file);

// Byte-level BPE (tokenizer.ggml.model gpt2, its pattern by the name in tokenizer.ggml.pre) and SentencePiece's BPE
// (llama). Throws std::runtime_error naming the file, the key and what is not supported.
GgufTokenizer gguf_tokenizer(const checkpoints::Gguf& file);

// tokenizer.chat_template of a file; nothing where it has none. Throws what Gguf::open throws.
std::optional<std::string> gguf_chat_template(const std::string& path);

}  // namespace cairn::data
