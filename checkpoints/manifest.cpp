#include "checkpoints/manifest.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <set>
#include <variant>

#include "checkpoints/strict_json.h"

namespace cairn::checkpoints {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "cairn-folder";
constexpr int kVersion = 1;
// The last entry guards all bytes before it.
constexpr std::string_view kSelf = "  \"self\": \"";

std::string hex_digest(std::string_view bytes) {
  const XXH128_hash_t h = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

std::string encode(const Manifest& manifest) {
  ordered_json files = ordered_json::array();
  for (const FileEntry& f : manifest.files) files.push_back({{"path", f.path}, {"size", f.size}, {"xxh3_128", f.xxh3}});
  const ordered_json document = {
      {"format", kFormat}, {"version", kVersion}, {"about", manifest.about}, {"files", files}};
  std::string text = document.dump(2, ' ', false, ordered_json::error_handler_t::replace);
  text.resize(text.size() - 2);  // "\n}"
  text += ",\n";
  return text + std::string(kSelf) + hex_digest(text) + "\"\n}\n";
}

bool stays_inside(const std::string& path) {
  if (path.empty() || fs::path(path).is_absolute()) return false;
  for (const auto& part : fs::path(path))
    if (part == ".." || part == "." || part.empty()) return false;
  return true;
}

// Either the manifest or what is wrong with it.
std::variant<Manifest, Fault> decode(const fs::path& folder) {
  const auto fault = [](const char* problem, std::string expected, std::string found) {
    return Fault{kManifestName, problem, std::move(expected), std::move(found)};
  };
  if (!fs::exists(folder / kManifestName))
    return fault("missing", "a committed folder", fs::exists(folder) ? "none" : "no folder");
  const std::string text = read_file(folder / kManifestName);
  const size_t self = text.rfind(kSelf);
  if (self == std::string::npos)
    return fault("truncated", "an entry \"self\" at the end", fmt::format("{} bytes without it", text.size()));
  const std::string expected = hex_digest(std::string_view(text).substr(0, self)) + "\"\n}\n";
  if (text.compare(self + kSelf.size(), std::string::npos, expected) != 0)
    return fault("corrupted", text.substr(self + kSelf.size(), 32), expected.substr(0, 32));
  try {
    const ordered_json document = parse_strict(text);
    if (document.at("format") != kFormat || document.at("version") != kVersion)
      return fault("malformed", fmt::format("{} version {}", kFormat, kVersion),
                   document.at("format").dump() + " version " + document.at("version").dump());
    Manifest manifest;
    manifest.about = document.at("about");
    for (const auto& f : document.at("files")) {
      manifest.files.push_back(
          {f.at("path").get<std::string>(), f.at("size").get<uint64_t>(), f.at("xxh3_128").get<std::string>()});
      if (!stays_inside(manifest.files.back().path))
        return fault("malformed", "paths inside the folder", manifest.files.back().path);
    }
    return manifest;
  } catch (const std::exception& e) {  // digest right, content not: another program wrote it
    return fault("malformed", "files with path, size and xxh3_128", e.what());
  }
}

std::string count_bytes(uint64_t n) { return fmt::format("{} bytes", n); }

std::optional<Fault> check_sizes(const fs::path& folder, const Manifest& manifest) {
  for (const FileEntry& f : manifest.files) {
    std::error_code error;
    const fs::path path = folder / f.path;
    if (!fs::is_regular_file(path, error)) return Fault{f.path, "missing", count_bytes(f.size), "no file"};
    const uint64_t size = fs::file_size(path, error);
    if (size != f.size)
      return Fault{f.path, size < f.size ? "truncated" : "too long", count_bytes(f.size), count_bytes(size)};
  }
  return std::nullopt;
}

std::optional<Fault> check_digests(const fs::path& folder, const Manifest& manifest) {
  for (const FileEntry& f : manifest.files)
    if (const FileEntry found = digest_file(folder / f.path); found.xxh3 != f.xxh3)
      return Fault{f.path, "corrupted", "XXH3-128 " + f.xxh3, found.xxh3};
  return std::nullopt;
}

std::optional<Fault> check_extra(const fs::path& folder, const Manifest& manifest) {
  std::set<std::string> known = {kManifestName}, extra;
  for (const FileEntry& f : manifest.files) known.insert(f.path);
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path().lexically_relative(folder).generic_string();
    if (!entry.is_directory() && !known.contains(path)) extra.insert(path);
  }
  if (extra.empty()) return std::nullopt;
  return Fault{*extra.begin(), "extra", "no such file", "a file that the manifest does not list"};
}

}  // namespace

uint64_t Manifest::bytes() const {
  uint64_t sum = 0;
  for (const FileEntry& f : files) sum += f.size;
  return sum;
}

std::string Fault::message() const {
  return fmt::format("{} is {}: {} expected, {} found", file, problem, expected, found);
}

Manifest read_manifest(const fs::path& folder) {
  auto decoded = decode(folder);
  if (const Fault* fault = std::get_if<Fault>(&decoded))
    throw std::runtime_error(fmt::format("{}: {}", folder.string(), fault->message()));
  return std::get<Manifest>(std::move(decoded));
}

std::optional<Fault> verify_folder(const fs::path& folder, Depth depth) {
  const auto decoded = decode(folder);
  if (const Fault* fault = std::get_if<Fault>(&decoded)) return *fault;
  const Manifest& manifest = std::get<Manifest>(decoded);
  if (auto fault = check_sizes(folder, manifest)) return fault;
  if (depth == Depth::sizes) return std::nullopt;
  if (auto fault = check_digests(folder, manifest)) return fault;
  return check_extra(folder, manifest);
}

Manifest check_folder(const fs::path& folder, Depth depth) {
  Manifest manifest = read_manifest(folder);
  std::optional<Fault> fault = check_sizes(folder, manifest);
  if (!fault && depth == Depth::digests) fault = check_digests(folder, manifest);
  if (fault) throw std::runtime_error(fmt::format("{}: {}", folder.string(), fault->message()));
  return manifest;
}

FolderCommit::FolderCommit(fs::path target) : FolderCommit(std::move(target), "") {}

FolderCommit::FolderCommit(fs::path target, const std::string& attempt) : target_(std::move(target)) {
  temporary_ = target_.parent_path() / fmt::format("{}{}{}{}", kTemporaryPrefix, target_.filename().string(),
                                                   attempt.empty() ? "" : ".", attempt);
  if (fs::exists(target_))
    throw std::runtime_error(fmt::format("{} exists already: delete it or choose another name", target_.string()));
  std::error_code error;
  if (attempt.empty()) fs::remove_all(temporary_, error);
  if (!error) fs::create_directories(temporary_, error);
  if (error)
    throw std::runtime_error(fmt::format("cannot create the folder {}: {}: choose a place that can be written",
                                         temporary_.string(), error.message()));
}

FolderCommit::~FolderCommit() {
  std::error_code ignored;
  if (owned_) fs::remove_all(temporary_, ignored);
}

fs::path FolderCommit::place(const std::string& path) {
  if (!stays_inside(path) || path == kManifestName)
    throw std::invalid_argument(fmt::format("'{}' is not a path for a file of {}", path, target_.string()));
  for (const FileEntry& f : manifest_.files)
    if (f.path == path)
      throw std::invalid_argument(fmt::format("'{}' is written twice into {}", path, target_.string()));
  const fs::path full = temporary_ / path;
  fs::create_directories(full.parent_path());
  return full;
}

void FolderCommit::adopt(FileEntry entry) {
  place(entry.path);
  manifest_.files.push_back(std::move(entry));
}

void FolderCommit::write(const std::string& path, std::string_view bytes) {
  FileWriter file(place(path));
  file.write(bytes);
  FileEntry entry = file.finish();
  entry.path = path;
  manifest_.files.push_back(std::move(entry));
}

void FolderCommit::write_safetensors(const std::string& path, std::span<const TensorView> tensors,
                                     const Metadata& metadata) {
  FileWriter file(place(path));
  checkpoints::write_safetensors(file, tensors, metadata);
  FileEntry entry = file.finish();
  entry.path = path;
  manifest_.files.push_back(std::move(entry));
}

void FolderCommit::write_model(std::span<const TensorView> tensors, const Metadata& metadata, uint64_t shard_bytes) {
  for (FileEntry& entry : checkpoints::write_model(temporary_, tensors, metadata, shard_bytes)) adopt(std::move(entry));
}

void FolderCommit::copy(const std::string& path, const fs::path& from) { write(path, read_file(from)); }

Manifest FolderCommit::commit(ordered_json about) {
  manifest_.about = std::move(about);
  std::sort(manifest_.files.begin(), manifest_.files.end(),
            [](const FileEntry& a, const FileEntry& b) { return a.path < b.path; });
  // The names of the files have to be on the disk before the manifest that lists them, all of it before the new name.
  for (const auto& entry : fs::recursive_directory_iterator(temporary_))
    if (entry.is_directory()) sync_folder(entry.path());
  sync_folder(temporary_);
  FileWriter file(temporary_ / kManifestName);
  file.write(encode(manifest_));
  file.finish();
  sync_folder(temporary_);
  std::error_code error;
  if (fs::exists(target_)) error = std::make_error_code(std::errc::file_exists);
  if (!error) fs::rename(temporary_, target_, error);
  if (error)
    throw std::runtime_error(
        fmt::format("cannot rename {} to {}: {}", temporary_.string(), target_.string(), error.message()));
  owned_ = false;
  sync_folder(target_.parent_path());
  return manifest_;
}

}  // namespace cairn::checkpoints
