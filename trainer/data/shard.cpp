#include "trainer/data/shard.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "trainer/data/files.h"

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
constexpr const char* kFormat = "cairn-tokens";
constexpr int kVersion = 1;

// `count` pieces of `each` bytes and nothing else. The count is a file's word and may be any number.
void expect_size(const MappedFile& file, int64_t count, int64_t each, const std::string& what) {
  const auto found = static_cast<int64_t>(file.size());
  if (found % each == 0 && found / each == count) return;
  __extension__ using Wide = __int128;
  const Wide expected = static_cast<Wide>(count) * each;
  throw std::runtime_error(fmt::format("{}: {} at byte {}: {} need {} bytes, the file has {}", file.path(),
                                       found < expected ? "cut short" : "more than the index says",
                                       std::min<Wide>(found, expected), what, expected, found));
}
}  // namespace

ShardWriter::ShardWriter(const std::string& folder, const Encoding& encoding, bool masked)
    : folder_(folder),
      beside_(folder + ".tmp"),
      vocab_size_(encoding.vocab_size),
      eos_(encoding.eos),
      tokenizer_(encoding.digest),
      masked_(masked),
      narrow_(!masked && encoding.vocab_size <= 65536) {
  while (folder_.size() > 1 && folder_.ends_with('/')) folder_.pop_back();
  beside_ = folder_ + ".tmp";
  fs::remove_all(beside_);
  std::error_code error;
  fs::create_directories(beside_, error);
  if (error) throw std::runtime_error(fmt::format("{}: cannot create the folder: {}", beside_, error.message()));
  file_ = std::fopen((beside_ + "/tokens.bin").c_str(), "wb");
  if (file_ == nullptr)
    throw std::runtime_error(fmt::format("{}/tokens.bin: cannot be written: {}", beside_, std::strerror(errno)));
}

ShardWriter::~ShardWriter() {
  if (file_ != nullptr) std::fclose(file_);
  std::error_code ignored;
  if (!beside_.empty()) fs::remove_all(beside_, ignored);
}

void ShardWriter::write(const void* data, size_t size) {
  if (std::fwrite(data, 1, size, file_) != size) {
    throw std::runtime_error(fmt::format("{}/tokens.bin: cannot be written: {}", beside_, std::strerror(errno)));
  }
}

void ShardWriter::put(const int32_t* ids, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = masked_ ? ids[i] & ~kUnpredicted : ids[i];
    if (id < 0 || id >= vocab_size_) {
      throw std::runtime_error(
          fmt::format("the tokenizer gave the id {}, but its vocabulary has {} entries", id, vocab_size_));
    }
    if (id > max_id_) {
      max_id_ = id;
      max_at_ = tokens_ + static_cast<int64_t>(i);
    }
  }
  digest_.add(ids, static_cast<int64_t>(count));
  if (narrow_) {
    narrowed_.assign(ids, ids + count);
    write(narrowed_.data(), count * sizeof(uint16_t));
  } else {
    write(ids, count * sizeof(int32_t));
  }
  tokens_ += static_cast<int64_t>(count);
}

void ShardWriter::add(const std::vector<int32_t>& ids, uint64_t document_hash) {
  put(ids.data(), ids.size());
  if (eos_ >= 0) put(&eos_, 1);
  ends_.push_back(static_cast<uint64_t>(tokens_));
  hashes_.push_back(document_hash);
}

void ShardWriter::finish(const nlohmann::json& source) {
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (!closed)
    throw std::runtime_error(fmt::format("{}/tokens.bin: cannot be written: {}", beside_, std::strerror(errno)));
  sync_path(beside_ + "/tokens.bin");
  write_documents(beside_ + "/documents.bin", ends_, hashes_);
  nlohmann::ordered_json index = {{"format", kFormat},
                                  {"version", kVersion},
                                  {"dtype", narrow_ ? "uint16" : "uint32"},
                                  {"tokens", tokens_},
                                  {"documents", ends_.size()},
                                  {"digest", fmt::format("{:016x}", digest_.finish(ends_.data(), documents()))},
                                  {"max_id", max_id_},
                                  {"max_id_at", max_at_},
                                  {"eos", eos_},
                                  {"vocab_size", vocab_size_},
                                  {"tokenizer", tokenizer_},
                                  {"source", source}};
  if (masked_) index["masked"] = true;
  write_whole(beside_ + "/index.json", index.dump(1) + "\n");
  fs::rename(beside_, folder_);
  sync_path(fs::absolute(folder_).parent_path().native());
  beside_.clear();
}

bool is_shard(const std::string& folder) { return fs::exists(folder + "/index.json"); }

nlohmann::json read_index(const std::string& folder) {
  const std::string path = folder + "/index.json";
  nlohmann::json index = nlohmann::json::parse(read_whole(path), nullptr, false);
  const auto fail = [&](const std::string& what) { throw std::runtime_error(fmt::format("{}: {}", path, what)); };
  if (!index.is_object()) fail("not a JSON object");
  if (index.value("format", "") != kFormat) fail(fmt::format("expected \"format\": \"{}\"", kFormat));
  if (!index.contains("version") || index["version"] != kVersion) {
    fail(fmt::format("expected \"version\": {}, found {}", kVersion, index.value("version", nlohmann::json()).dump()));
  }
  const auto dtype = index.value("dtype", nlohmann::json());
  if (dtype != "uint16" && dtype != "uint32")
    fail(fmt::format("dtype: expected \"uint16\" or \"uint32\", found {}", dtype.dump()));
  if (!index.contains("tokens") || !index["tokens"].is_number_unsigned()) fail("tokens: expected a number");
  return index;
}

OpenShard open_shard(const std::string& folder) {
  const auto index = read_index(folder);
  OpenShard shard;
  try {
    shard.ids = {MappedFile::open(folder + "/tokens.bin"), 0, token_type(index["dtype"]), index["tokens"]};
    expect_size(*shard.ids.file, shard.ids.tokens, size_of(shard.ids.type),
                fmt::format("{} tokens of {}", shard.ids.tokens, name_of(shard.ids.type)));
    if (index.contains("documents")) {
      shard.documents = open_documents(folder + "/documents.bin", index["documents"], shard.ids.tokens);
    }
    if (index.contains("digest") && index.contains("max_id") && shard.documents) {
      const auto digest = index["digest"].get<std::string>();
      uint64_t value = 0;
      const auto parsed = std::from_chars(digest.data(), digest.data() + digest.size(), value, 16);
      if (parsed.ec != std::errc() || parsed.ptr != digest.data() + digest.size()) {
        throw std::runtime_error(
            fmt::format("{}/index.json: digest: found \"{}\", expected 16 hexadecimal digits", folder, digest));
      }
      shard.facts = TokenFacts{value, index["max_id"], index.value("max_id_at", int64_t{0})};
    }
    shard.tokenizer = index.value("tokenizer", "");
    shard.masked = index.value("masked", false);
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(fmt::format("{}/index.json: {}", folder, error.what()));
  }
  return shard;
}

DocumentTable open_documents(const std::string& path, int64_t documents, int64_t tokens) {
  const auto file = MappedFile::open(path);
  expect_size(*file, documents, 16, fmt::format("{} documents", documents));
  const auto* ends = reinterpret_cast<const uint64_t*>(file->data());
  uint64_t before = 0;
  for (int64_t d = 0; d < documents; before = ends[d++]) {
    if (ends[d] < before || ends[d] > static_cast<uint64_t>(tokens)) {
      throw std::runtime_error(fmt::format("{}: byte {}: document {} ends at token {}, but begins at {} of {}", path,
                                           8 * d, d, ends[d], before, tokens));
    }
  }
  if (before != static_cast<uint64_t>(tokens)) {
    throw std::runtime_error(
        fmt::format("{}: the last document ends at token {}, but there are {}", path, before, tokens));
  }
  return {documents, ends, ends + documents, file};
}

void write_documents(const std::string& path, const std::vector<uint64_t>& ends, const std::vector<uint64_t>& hashes) {
  std::string bytes(reinterpret_cast<const char*>(ends.data()), ends.size() * sizeof(uint64_t));
  bytes.append(reinterpret_cast<const char*>(hashes.data()), hashes.size() * sizeof(uint64_t));
  write_whole(path, bytes);
}

}  // namespace cairn::data
