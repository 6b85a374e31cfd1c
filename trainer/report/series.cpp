#include "trainer/report/series.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "trainer/address.h"
#include "trainer/analysis/analysis.h"

namespace cairn::report {

namespace fs = std::filesystem;

bool names_series(const std::string& argument) {
  const fs::path path = argument;
  return argument.find("{N}") != std::string::npos || path.extension() == ".yaml" || path.extension() == ".yml";
}

fs::path measure_series(const std::string& series, const fs::path& beside,
                        const std::function<void(const std::string&)>& say) {
  const analysis::States states(locate_set(series, true), {}, false);
  const std::string whole = fs::absolute(series).lexically_normal().string();
  const fs::path folder =
      beside / fmt::format("{}-{:08x}", fs::path(whole).filename().string(), XXH32(whole.data(), whole.size(), 0));
  // Series grow from call to call; the page shows the states that there are now.
  if (fs::is_directory(folder)) {
    std::vector<fs::path> old;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename() != "cache") old.push_back(entry.path());
    for (const fs::path& path : old) fs::remove_all(path);
  }
  analysis::analyze(states, analysis::select_metrics({}), {.out = folder, .say = say});
  return folder;
}

}  // namespace cairn::report
