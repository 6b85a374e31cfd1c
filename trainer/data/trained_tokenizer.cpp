#include "trainer/data/trained_tokenizer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "trainer/data/cache.h"
#include "trainer/data/documents.h"
#include "trainer/data/prepare.h"

namespace fs = std::filesystem;

namespace cairn::data {
namespace {

// Counts up when train_bpe gives other merges for the same texts.
constexpr int kTrainingVersion = 1;

std::string key_of(const std::vector<SourceOptions>& sources, double held_out, const BpeTrainOptions& options,
                   const std::string& cache) {
  // NOTE: order, names and weights of the sources do not count: the merges do not depend on the order of documents.
  std::vector<std::string> texts;
  for (const auto& source : sources)
    texts.push_back(fmt::format("{}\n{}\n", files_digest(source, cache), document_options(source)));
  std::sort(texts.begin(), texts.end());
  return fmt::format("bpe {}\n{}\n{} {}\n{}\n{}\n{}", kTrainingVersion, held_out, options.vocab_size,
                     options.min_frequency, options.pattern, fmt::join(options.special_tokens, "\n"),
                     fmt::join(texts, ""));
}

// The tokenizer of a cache entry together with the digest that it had when it was made; nothing where it is damaged.
std::shared_ptr<const Tokenizer> read_entry(const std::string& folder) {
  try {
    auto tokenizer = Tokenizer::from_file(folder);
    const bool whole = read_whole(folder + "/digest") == fmt::format("{:016x}\n", tokenizer->digest());
    return whole ? tokenizer : nullptr;
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}

}  // namespace

std::shared_ptr<const Tokenizer> trained_tokenizer(const std::vector<SourceOptions>& sources, double held_out,
                                                   const BpeTrainOptions& options, const std::string& cache) {
  for (const auto& source : sources) check(source);
  const std::string folder =
      fmt::format("{}/tokenizers/{}", cache_folder(cache), digest_hex(key_of(sources, held_out, options, cache)));
  const CacheLock lock(folder);
  if (fs::exists(folder)) {
    if (auto known = read_entry(folder)) return known;
    fs::remove_all(folder);
  }
  std::vector<std::string> documents;
  for (const auto& source : sources) {
    read_documents(source, held_out, [&](std::string_view text) {
      documents.emplace_back(text);
      return true;
    });
  }
  const auto trained = train_bpe({documents.begin(), documents.end()}, options);
  const std::string beside = fmt::format("{}.tmp{}", folder, ::getpid());
  fs::remove_all(beside);
  trained->save(beside);
  write_whole(beside + "/digest", fmt::format("{:016x}\n", trained->digest()));
  fs::rename(beside, folder);
  return trained;
}

}  // namespace cairn::data
