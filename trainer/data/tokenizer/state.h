// What a Tokenizer is made of.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "trainer/data/tokenizer/added_tokens.h"
#include "trainer/data/tokenizer/decoder.h"
#include "trainer/data/tokenizer/model.h"
#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/post_processor.h"
#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {

struct Tokenizer::State {
  std::string json;     // tokenizer.json
  std::string config;   // tokenizer_config.json as it was read; empty: none
  uint64_t serial = 0;  // names this tokenizer in the threads' caches

  std::unique_ptr<Normalizer> normalizer;
  PreTokenizerChain pre_tokenizer;
  std::unique_ptr<Model> model;
  Surround surround;
  std::unique_ptr<Decoder> decoder;

  std::vector<std::unique_ptr<AddedToken>> added;  // in the file's order
  std::unordered_map<std::string, const AddedToken*> added_by_content;
  std::unordered_map<int32_t, const AddedToken*> added_by_id;
  std::unordered_set<std::string> special_contents;
  TokenFinder raw_tokens, normalized_tokens;

  std::optional<int32_t> eos, bos;
};

// Builds the state from a tokenizer.json; ORIGIN heads every error. CONFIG: tokenizer_config.json, or empty.
std::shared_ptr<Tokenizer::State> load_state(const std::string& text, const std::string& origin,
                                             const std::string& config);

// A tokenizer.json for byte-level BPE. TOKENS in the order of their ids, spelled in GPT-2's stand-ins; MERGES as pairs
// of such; SPECIALS among TOKENS. PATTERN empty: pieces are whole texts.
std::string byte_level_json(const std::vector<std::string>& tokens,
                            const std::vector<std::pair<std::string, std::string>>& merges,
                            const std::vector<std::string>& specials, const std::string& pattern,
                            bool add_prefix_space = false);

}  // namespace cairn::data
