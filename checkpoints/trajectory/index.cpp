#include "checkpoints/trajectory/index.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <stdexcept>

#include "checkpoints/strict_json.h"

namespace cairn::checkpoints::trajectory {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "cairn-trajectory";
constexpr int kVersion = 1;
constexpr std::string_view kSelf = "  \"self\": \"";  // guards all bytes before it, as in a folder's manifest

constexpr struct {
  Codec codec;
  const char* name;
} kCodecs[] = {{Codec::plain, "plain"}, {Codec::zstd, "zstd"}, {Codec::delta, "delta"}};

std::string hex_digest(std::string_view bytes) {
  const XXH128_hash_t h = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

Json json_of(const FileEntry& file) { return {{"path", file.path}, {"size", file.size}, {"xxh3_128", file.xxh3}}; }

FileEntry entry_of(const Json& json) {
  return {json.at("path").get<std::string>(), json.at("size").get<uint64_t>(), json.at("xxh3_128").get<std::string>()};
}

Index parse(const std::string& text) {
  const Json json = parse_strict(text);
  if (json.at("format") != kFormat || json.at("version") != kVersion)
    throw std::runtime_error(fmt::format("found {} version {}, expected {} version {}", json.at("format").dump(),
                                         json.at("version").dump(), kFormat, kVersion));
  Index index;
  const std::string dtype = json.at("dtype"), codec = json.at("codec");
  index.format.dtype = dtype == "bfloat16" ? hdf5::Type::bf16 : hdf5::Type::f32;
  const auto known = codec_from_name(codec);
  if (!known || (dtype != "bfloat16" && dtype != "float32"))
    throw std::runtime_error(fmt::format("found codec {} of {}, which this program does not know", codec, dtype));
  index.format.codec = *known;
  for (const Json& t : json.at("tensors"))
    index.format.tensors.push_back({t.at("name").get<std::string>(), t.at("shape").get<std::vector<int64_t>>()});
  for (const Json& s : json.at("segments")) {
    index.segments.push_back({entry_of(s), s.at("steps").get<std::vector<int64_t>>()});
    if (fs::path(index.segments.back().file.path).filename() != index.segments.back().file.path)
      throw std::runtime_error(fmt::format("a segment outside the folder: {}", index.segments.back().file.path));
  }
  index.next_number = json.at("next_segment").get<int64_t>();
  for (const Json& j : json.at("joins")) index.joins.push_back(entry_of(j));
  const auto steps = index.steps();
  if (std::adjacent_find(steps.begin(), steps.end(), std::greater_equal<>()) != steps.end())
    throw std::runtime_error("steps that do not ascend");
  return index;
}

}  // namespace

const char* codec_name(Codec codec) { return kCodecs[static_cast<int>(codec)].name; }

std::optional<Codec> codec_from_name(const std::string& name) {
  for (const auto& row : kCodecs)
    if (name == row.name) return row.codec;
  return std::nullopt;
}

const char* group_of(Codec codec) { return codec == Codec::delta ? "delta" : "weights"; }

int64_t Format::Tensor::numel() const {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

int64_t Format::step_bytes() const {
  int64_t n = 0;
  for (const Tensor& t : tensors) n += t.numel();
  return n * static_cast<int64_t>(hdf5::type_size(dtype));
}

std::vector<int64_t> Index::steps() const {
  std::vector<int64_t> all;
  for (const Segment& s : segments) all.insert(all.end(), s.steps.begin(), s.steps.end());
  return all;
}

std::string segment_name(int64_t number) { return fmt::format("segment-{:05}.h5", number); }

std::variant<Index, Fault> load_index(const fs::path& folder) {
  const auto fault = [](const char* problem, std::string expected, std::string found) {
    return Fault{kManifestName, problem, std::move(expected), std::move(found)};
  };
  if (!fs::exists(folder / kManifestName))
    return fault("missing", "a trajectory", fs::exists(folder) ? "none" : "no folder");
  const std::string text = read_file(folder / kManifestName);
  const size_t self = text.rfind(kSelf);
  if (self == std::string::npos)
    return fault("truncated", "an entry \"self\" at the end", fmt::format("{} bytes without it", text.size()));
  const std::string expected = hex_digest(std::string_view(text).substr(0, self)) + "\"\n}\n";
  if (text.compare(self + kSelf.size(), std::string::npos, expected) != 0)
    return fault("corrupted", text.substr(self + kSelf.size(), 32), expected.substr(0, 32));
  try {
    return parse(text);
  } catch (const std::exception& e) {
    return fault("malformed", "segments of a trajectory", e.what());
  }
}

bool has_index(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / kManifestName, error) &&
         read_file(folder / kManifestName).find(fmt::format("\"{}\"", kFormat)) != std::string::npos;
}

Index read_index(const fs::path& folder) {
  auto loaded = load_index(folder);
  if (const auto* fault = std::get_if<Fault>(&loaded))
    throw std::runtime_error(fmt::format("{}: {}", folder.string(), fault->message()));
  return std::get<Index>(std::move(loaded));
}

void write_index(const fs::path& folder, const Index& index) {
  Json tensors = Json::array(), segments = Json::array(), joins = Json::array();
  for (const auto& t : index.format.tensors) tensors.push_back({{"name", t.name}, {"shape", t.shape}});
  for (const Segment& s : index.segments) {
    segments.push_back(json_of(s.file));
    segments.back()["steps"] = s.steps;
  }
  for (const FileEntry& j : index.joins) joins.push_back(json_of(j));
  // One line a segment: a long run has many steps.
  const auto lines = [](const Json& list) {
    std::string text = "[";
    for (const Json& item : list) text += (text.size() > 1 ? ",\n    " : "\n    ") + item.dump();
    return text + (list.empty() ? "]" : "\n  ]");
  };
  std::string text =
      fmt::format("{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"dtype\": \"{}\",\n  \"codec\": \"{}\",\n",
                  kFormat, kVersion, hdf5::type_name(index.format.dtype), codec_name(index.format.codec));
  text += fmt::format("  \"tensors\": {},\n  \"segments\": {},\n  \"next_segment\": {},\n  \"joins\": {},\n",
                      lines(tensors), lines(segments), index.next_number, lines(joins));
  replace_file(folder / kManifestName, text + std::string(kSelf) + hex_digest(text) + "\"\n}\n");
}

}  // namespace cairn::checkpoints::trajectory
