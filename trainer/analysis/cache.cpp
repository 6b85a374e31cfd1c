#include "trainer/analysis/cache.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

#include "checkpoints/file.h"

namespace cairn::analysis {
namespace {

using Json = nlohmann::ordered_json;

Json write_value(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

double read_value(const Json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

}  // namespace

std::map<std::string, std::string>& Cache::lines_of(const std::string& metric) {
  const auto [at, fresh] = lines_.try_emplace(metric);
  if (!fresh) return at->second;
  const auto path = folder_ / (metric + ".jsonl");
  if (!std::filesystem::exists(path)) return at->second;
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    // The key stands first; the rest is read when it is asked for.
    constexpr std::string_view kHead = "{\"key\":\"";
    if (!line.starts_with(kHead) || !line.ends_with("]}")) continue;
    const size_t end = line.find('"', kHead.size());
    if (end == std::string::npos) continue;
    const std::string key = line.substr(kHead.size(), end - kHead.size());
    at->second[key] = std::move(line);
  }
  return at->second;
}

std::optional<Findings> Cache::find(const std::string& metric, const std::string& key) {
  std::string line;
  {
    const std::lock_guard lock(mutex_);
    const auto& lines = lines_of(metric);
    const auto at = lines.find(key);
    if (at == lines.end()) return std::nullopt;
    line = at->second;
  }
  const Json json = Json::parse(line, nullptr, false);
  if (json.is_discarded() || !json.contains("found")) return std::nullopt;
  Findings found;
  for (const Json& one : json.at("found")) {
    Finding f{.series = one.at("series").get<std::string>()};
    f.value.name = one.at("name").get<std::string>();
    f.value.shape = one.at("shape").get<std::vector<int64_t>>();
    for (const Json& value : one.at("values")) f.value.values.push_back(read_value(value));
    found.push_back(std::move(f));
  }
  return found;
}

void Cache::put(const std::string& metric, const std::string& key, const Findings& found) {
  Json json{{"key", key}, {"found", Json::array()}};
  for (const Finding& f : found) {
    Json values = Json::array();
    for (const double value : f.value.values) values.push_back(write_value(value));
    json["found"].push_back(
        {{"series", f.series}, {"name", f.value.name}, {"shape", f.value.shape}, {"values", std::move(values)}});
  }
  const std::lock_guard lock(mutex_);
  auto& line = lines_of(metric)[key];
  line = json.dump();
  std::filesystem::create_directories(folder_);
  const auto path = folder_ / (metric + ".jsonl");
  std::ofstream out(path, std::ios::app);
  // The newline comes first: what an earlier crash tore stays a line of its own.
  out << "\n" << line;
  if (!out.flush())
    throw std::runtime_error(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
}

}  // namespace cairn::analysis
