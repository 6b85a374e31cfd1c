// `cairn report`: one HTML page that holds everything it shows, the plot library included; it asks no network.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cairn::report {

struct Report {
  std::filesystem::path out;
  uint64_t bytes = 0;
  size_t plots = 0;
};

// A folder of a run, or of measured series of foreign models.
struct Shown {
  std::filesystem::path folder;
  std::string name = {};  // on the page; empty: the folder's
};

// `out` is replaced whole or not at all. Throws std::runtime_error where the program was built without the plot library
// or the disk refuses, std::invalid_argument where a folder is neither a run nor holds a series.
Report write_report(const std::vector<Shown>& runs, const std::filesystem::path& out);

}  // namespace cairn::report
