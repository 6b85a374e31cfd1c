// Text <-> token ids, from a Hugging Face tokenizer.json, with the ids that the official `tokenizers` library gives.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::data {

// Immutable; encode and decode may run on any number of threads at once (the word cache is one a thread).
//
// Text is UTF-8. Bytes that are not valid UTF-8 are read as Python's `errors="replace"` reads them: each maximal
// invalid part becomes U+FFFD, and then the ids are those that the official library gives for that string.
// `truncation` and `padding` of a tokenizer.json are left aside, as transformers does: a text is encoded whole.
class Tokenizer {
 public:
  // One id a byte (0-255) and `<|endoftext|>` = 256, the end of a document.
  static std::shared_ptr<const Tokenizer> bytes();

  // PATH is a tokenizer.json, a folder that holds one, a folder that holds vocab.json + merges.txt (GPT-2 style), or a
  // GGUF file.
  // tokenizer_config.json beside it names the special tokens. Throws std::runtime_error naming the file and what is
  // wrong with it: not readable, not JSON, a token that a merge needs and the vocabulary lacks, or a component
  // (by its name) that is not supported.
  static std::shared_ptr<const Tokenizer> from_file(const std::string& path);
  // TEXT is a tokenizer.json; ORIGIN is what errors call it.
  static std::shared_ptr<const Tokenizer> from_json(const std::string& text, const std::string& origin);

  // The ids of TEXT. Added and special tokens that occur in it are recognised. `add_special_tokens` applies the
  // post-processor (a leading <s>, say). Throws std::runtime_error where the model has no way to spell the text
  // (an unknown character and no unknown token).
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = false) const;

  // The text of IDS as the official library gives it: always valid UTF-8, a cut character becomes U+FFFD. Ids that
  // the vocabulary does not have are left out, as there.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  // The same, but with the very bytes of the ids: a cut character keeps those that it has.
  std::string decode_bytes(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  int32_t vocab_size() const;  // highest id + 1
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  // The token as the vocabulary spells it; empty where ID has no token.
  std::string id_to_token(int32_t id) const;
  bool is_special(int32_t id) const;

  // A tokenizer.json that the official library loads: the very text that was read, where it was read.
  std::string to_json() const;
  // Writes tokenizer.json and tokenizer_config.json into FOLDER (made if missing): transformers.AutoTokenizer loads it.
  void save(const std::string& folder) const;
  // XXH3-64 of to_json().
  uint64_t digest() const;

  struct State;  // what the files of this folder share; not for callers
  explicit Tokenizer(std::shared_ptr<const State> state);

 private:
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens, bool raw) const;
  std::shared_ptr<const State> state_;
};

// GPT-2's pattern: words with their leading space, digits, the rest, whitespace.
extern const char* const kGpt2Pattern;

struct BpeTrainOptions {
  int64_t vocab_size = 4096;  // special tokens and the 256 bytes included
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  std::string pattern = kGpt2Pattern;
  int64_t min_frequency = 0;  // a pair that occurs less often is not merged
  int threads = 0;            // 0: as many as OpenMP gives
};

// Byte-level BPE. Special tokens take the first ids, then the 256 bytes, then the merges. Of pairs that are equally
// frequent the one whose byte strings are lexicographically greater is merged first. The result does not depend on the
// number of threads nor on the order of the documents. Fewer tokens come out where nothing is left to merge.
// Throws std::invalid_argument where vocab_size is too small for the bytes and the special tokens.
std::shared_ptr<const Tokenizer> train_bpe(const std::vector<std::string_view>& documents,
                                           const BpeTrainOptions& options);

// `cairn tokenizer encode --json`: reads one JSON string a line, writes one JSON array of ids a line. Throws
// std::runtime_error with ORIGIN and the line number where a line is not a JSON string. Blank lines are errors too.
void encode_json_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool add_special_tokens,
                       const std::string& origin);
// `cairn tokenizer decode --json`: the other way round.
void decode_json_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool skip_special_tokens,
                       const std::string& origin);

}  // namespace cairn::data
