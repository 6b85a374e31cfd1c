// What was measured before: one line a (metric, state), found again by a key of everything that decides the result.
#pragma once

#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "trainer/analysis/analysis.h"

namespace cairn::analysis {

// FOLDER/METRIC.jsonl: {"key", "found": [{"series", "name", "shape", "values"}]}. Lines that a crash tore are passed
// over. Any thread; two processes at once only repeat each other's work.
class Cache {
 public:
  explicit Cache(std::filesystem::path folder) : folder_(std::move(folder)) {}

  std::optional<Findings> find(const std::string& metric, const std::string& key);
  void put(const std::string& metric, const std::string& key, const Findings& found);

 private:
  std::map<std::string, std::string>& lines_of(const std::string& metric);

  std::filesystem::path folder_;
  std::mutex mutex_;
  std::map<std::string, std::map<std::string, std::string>> lines_;  // metric -> key -> line
};

}  // namespace cairn::analysis
