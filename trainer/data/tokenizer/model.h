// Models: pieces of text -> ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "trainer/data/tokenizer/json_fields.h"
#include "trainer/data/tokenizer/word_cache.h"

namespace cairn::data {

class Model {  // immutable, thread-safe
 public:
  virtual ~Model() = default;
  // Appends the ids of PIECE (not empty). Throws std::runtime_error where it cannot be spelled.
  virtual void encode(std::string_view piece, WordCache& cache, std::vector<int32_t>& out) const = 0;

  std::optional<int32_t> token_to_id(std::string_view token) const {
    const auto at = ids_.find(token);
    return at == ids_.end() ? std::nullopt : std::optional(at->second);
  }
  // Null where no token has the id.
  const std::string* id_to_token(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens_.size() && has_[id] ? &tokens_[id] : nullptr;
  }
  // How many tokens there are, as the official library counts: ids of added tokens go on from here.
  int64_t size() const { return static_cast<int64_t>(ids_.size()); }
  int32_t highest_id() const { return static_cast<int32_t>(tokens_.size()) - 1; }

 protected:
  // Takes a `vocab` object {token: id}.
  void read_vocab(const Json& vocab, const std::string& where);
  void add_token(const std::string& token, int64_t id, const std::string& where);
  void finish_vocab();  // once, after the last token

  std::vector<std::string> tokens_;  // by id
  std::vector<char> has_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into tokens_
};

// The component `model`. `byte_level`: pieces are the bytes themselves, though the vocabulary spells them in GPT-2's
// stand-ins. Throws std::runtime_error naming what is wrong or not supported.
std::unique_ptr<Model> make_model(const Json& component, bool byte_level);
// Whether make_model can take byte_level for this component.
bool model_reads_bytes(const Json& component);

std::unique_ptr<Model> make_bpe(const Json& component, bool byte_level);
std::unique_ptr<Model> make_unigram(const Json& component);
std::unique_ptr<Model> make_word_level(const Json& component);
std::unique_ptr<Model> make_word_piece(const Json& component);

}  // namespace cairn::data
