// What the family files share: their declarations for the table, and readings that most of them need.
#pragma once

#include "models/families/family.h"

namespace cairn::models {

extern const Family llama_family;

// For families whose names on disk are the decoder's own.
inline std::string same_name(const std::string& parameter) { return parameter; }

// hidden_size / heads. Throws ConfigError("num_attention_heads") where it does not divide and no head_dim is given.
int64_t head_width(const ConfigReader& reader, int64_t hidden_size, int64_t heads);

// The activation under `key`; throws ConfigError naming the value and the ones there are.
kernels::Activation activation(ConfigReader& reader, const std::string& key, const std::string& fallback);

}  // namespace cairn::models
