#include "trainer/data/tokenizer/tokenizer.h"

#include <xxhash.h>

#include <algorithm>
#include <array>

#include "trainer/data/tokenizer/state.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

// The caches of this thread, of the tokenizers that it used last.
WordCache& thread_cache(uint64_t serial) {
  struct Entry {
    uint64_t serial = 0, used = 0;
    std::unique_ptr<WordCache> cache;
  };
  thread_local std::array<Entry, 3> entries;
  thread_local uint64_t clock = 0;
  Entry* oldest = &entries[0];
  for (Entry& entry : entries) {
    if (entry.serial == serial && entry.cache) {
      entry.used = ++clock;
      return *entry.cache;
    }
    if (entry.used < oldest->used) oldest = &entry;
  }
  oldest->serial = serial;
  oldest->used = ++clock;
  oldest->cache = std::make_unique<WordCache>();
  return *oldest->cache;
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  const State& s = *state_;
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special_tokens) ids = s.surround.before;
  WordCache& cache = thread_cache(s.serial);
  auto to_model = [&](Piece piece) { s.model->encode(piece.text, cache, ids); };
  const auto ordinary = [&](std::string_view part, bool head) {
    std::string normalized;
    if (s.normalizer) {
      normalized.assign(part);
      s.normalizer->apply(normalized, head);
      part = normalized;
    }
    if (s.normalized_tokens.empty()) {
      if (!part.empty()) s.pre_tokenizer.split({part, head}, to_model);
      return;
    }
    const char* begin = part.data();
    s.normalized_tokens.split(part, [&](const TokenFinder::Part& inner) {
      if (inner.token) {
        ids.push_back(inner.token->id);
      } else if (!inner.text.empty()) {
        s.pre_tokenizer.split({inner.text, head && inner.text.data() == begin}, to_model);
      }
    });
  };
  if (s.raw_tokens.empty()) {
    ordinary(text, true);
  } else {
    s.raw_tokens.split(text, [&](const TokenFinder::Part& part) {
      if (part.token) {
        ids.push_back(part.token->id);
      } else {
        ordinary(part.text, part.text.data() == text.data());
      }
    });
  }
  if (add_special_tokens) ids.insert(ids.end(), s.surround.after.begin(), s.surround.after.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  return decode(ids, skip_special_tokens, false);
}

std::string Tokenizer::decode_bytes(std::span<const int32_t> ids, bool skip_special_tokens) const {
  return decode(ids, skip_special_tokens, true);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens, bool raw) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  // NOTE: as in the official library a special token that the normalizer changes is not skipped.
  for (const int32_t id : ids) {
    std::string token = id_to_token(id);
    if (token.empty() || (skip_special_tokens && state_->special_contents.contains(token))) continue;
    tokens.push_back(std::move(token));
  }
  std::string text;
  if (state_->decoder) {
    raw ? state_->decoder->apply_raw(tokens) : state_->decoder->apply(tokens);
    for (const std::string& token : tokens) text += token;
  } else {
    for (size_t i = 0; i < tokens.size(); ++i) text += (i ? " " : "") + tokens[i];
  }
  return text;
}

int32_t Tokenizer::vocab_size() const {
  int32_t highest = state_->model->highest_id();
  for (const auto& token : state_->added) highest = std::max(highest, token->id);
  return highest + 1;
}

std::optional<int32_t> Tokenizer::eos_id() const { return state_->eos; }
std::optional<int32_t> Tokenizer::bos_id() const { return state_->bos; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const auto at = state_->added_by_content.find(std::string(token)); at != state_->added_by_content.end())
    return at->second->id;
  return state_->model->token_to_id(token);
}

std::string Tokenizer::id_to_token(int32_t id) const {
  if (const auto at = state_->added_by_id.find(id); at != state_->added_by_id.end()) return at->second->spelled;
  const std::string* token = state_->model->id_to_token(id);
  return token ? *token : std::string();
}

bool Tokenizer::is_special(int32_t id) const {
  const auto at = state_->added_by_id.find(id);
  return at != state_->added_by_id.end() && at->second->special;
}

std::string Tokenizer::to_json() const { return state_->json; }
uint64_t Tokenizer::digest() const { return XXH3_64bits(state_->json.data(), state_->json.size()); }

}  // namespace cairn::data
