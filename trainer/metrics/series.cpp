#include "trainer/metrics/series.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <unordered_map>

#include "checkpoints/file.h"
#include "checkpoints/hdf5.h"

namespace cairn {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kWholeModel = "model";  // how "" is called in the HDF5 file

// What JSON has no word for is null there, and nan in both files.
double storable(double value) { return std::isfinite(value) ? value : std::numeric_limits<double>::quiet_NaN(); }

Json nested(const Measurement& m, size_t dimension, size_t& at) {
  if (dimension == m.shape.size()) return Json(storable(m.values[at++]));
  Json array = Json::array();
  for (int64_t i = 0; i < m.shape[dimension]; ++i) array.push_back(nested(m, dimension + 1, at));
  return array;
}

// Throws std::invalid_argument where the arrays are not of one shape.
void flatten(const Json& value, size_t dimension, Measurement& m) {
  if (value.is_array()) {
    const int64_t extent = value.size();
    if (dimension == m.shape.size() && m.values.empty())
      m.shape.push_back(extent);
    else if (dimension >= m.shape.size() || m.shape[dimension] != extent)
      throw std::invalid_argument("the arrays in 'value' are not of one shape");
    if (extent == 0) throw std::invalid_argument("'value' holds an empty array");
    for (const Json& item : value) flatten(item, dimension + 1, m);
    return;
  }
  if (dimension != m.shape.size()) throw std::invalid_argument("the arrays in 'value' are not of one shape");
  if (!value.is_number() && !value.is_null())
    throw std::invalid_argument(fmt::format("'value' holds {} where a number is expected", value.type_name()));
  m.values.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>());
}

Measurement read_line(const std::string& line) {
  const Json json = Json::parse(line);
  if (!json.is_object() || !json.contains("step") || !json.contains("name") || !json.contains("value"))
    throw std::invalid_argument("expected an object with 'step', 'name' and 'value'");
  Measurement m{.step = json.at("step").get<int64_t>(), .name = json.at("name").get<std::string>()};
  flatten(json.at("value"), 0, m);
  return m;
}

void check(const Measurement& m, const std::string& metric) {
  auto refuse = [&](const std::string& what) {
    throw std::invalid_argument(fmt::format("{}: step {}, '{}': {}", metric, m.step, m.name, what));
  };
  if (m.name == kWholeModel || m.name == "." || m.name.find('/') != std::string::npos)
    refuse("a name may not be 'model' (that is the name of \"\" in the file) nor '.' nor hold a '/'");
  const int64_t expected = std::accumulate(m.shape.begin(), m.shape.end(), int64_t{1}, std::multiplies<>());
  if (expected < 1) refuse("an array without elements");
  if (expected != static_cast<int64_t>(m.values.size()))
    refuse(fmt::format("found {} values, expected {} for its shape", m.values.size(), expected));
}

void write_hdf5(const fs::path& path, const std::string& metric, const std::vector<Measurement>& all) {
  std::vector<std::string> order;
  std::unordered_map<std::string, std::vector<const Measurement*>> of_name;
  for (const Measurement& m : all) {
    auto& those = of_name[m.name];
    if (those.empty()) order.push_back(m.name);
    if (!those.empty() && those.front()->shape != m.shape) {
      throw std::runtime_error(
          fmt::format("{}: '{}' has shape [{}] at step {} and [{}] at step {}: an array keeps its shape over a series; "
                      "remove {} to begin anew",
                      path.string(), m.name, fmt::join(those.front()->shape, ", "), those.front()->step,
                      fmt::join(m.shape, ", "), m.step, fs::path(path).replace_extension("jsonl").string()));
    }
    those.push_back(&m);
  }
  const fs::path temporary = path.parent_path() / (".tmp-" + path.filename().string());
  auto file = checkpoints::hdf5::File::create(temporary);
  file.set_attribute("/", "metric", metric);
  for (const std::string& name : order) {
    const auto& those = of_name[name];
    std::vector<int64_t> steps, shape{static_cast<int64_t>(those.size())};
    std::vector<double> values;
    shape.insert(shape.end(), those.front()->shape.begin(), those.front()->shape.end());
    for (const Measurement* m : those) {
      steps.push_back(m->step);
      for (const double value : m->values) values.push_back(storable(value));
    }
    const std::string entry = name.empty() ? kWholeModel : name;
    file.write("steps/" + entry, steps);
    file.write("values/" + entry, values, shape);
  }
  file.finish();
  fs::rename(temporary, path);
}

// Held while a series is read, joined and written again:
// replays of several stretches, and of several metrics, share the folder.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder) {
    fs::create_directories(folder);
    const auto path = folder / ".lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    int locked = fd_ < 0 ? -1 : 0;
    if (fd_ >= 0) {
      while ((locked = ::flock(fd_, LOCK_EX)) != 0 && errno == EINTR) {
      }
    }
    if (locked != 0) {
      const std::string reason = std::strerror(errno);
      if (fd_ >= 0) ::close(fd_);
      throw std::runtime_error(fmt::format("cannot lock {}: {}", path.string(), reason));
    }
  }
  FolderLock(const FolderLock&) = delete;
  ~FolderLock() { ::close(fd_); }

 private:
  int fd_;
};

// `all` takes the place of what is there.
void put_series(const fs::path& folder, const std::string& metric, const std::vector<Measurement>& all) {
  write_hdf5(folder / (metric + ".h5"), metric, all);
  std::string lines;
  for (const Measurement& m : all) {
    size_t at = 0;
    lines += Json{{"step", m.step}, {"name", m.name}, {"value", nested(m, 0, at)}}.dump() + "\n";
  }
  checkpoints::replace_file(folder / (metric + ".jsonl"), lines);
}

}  // namespace

std::vector<Measurement> read_series(const fs::path& folder, const std::string& metric) {
  const fs::path path = folder / (metric + ".jsonl");
  std::vector<Measurement> all;
  if (!fs::exists(path)) return all;
  const std::string text = checkpoints::read_file(path);
  int64_t number = 1;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    try {
      all.push_back(read_line(text.substr(begin, end - begin)));
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}:{}: {}", path.string(), number, error.what()));
    }
    begin = end + 1;
  }
  const auto earlier = [](const Measurement& a, const Measurement& b) { return a.step < b.step; };
  std::stable_sort(all.begin(), all.end(), earlier);
  return all;
}

void write_series(const fs::path& folder, const std::string& metric, std::span<const Measurement> more) {
  for (const Measurement& m : more) check(m, metric);
  const FolderLock lock(folder);
  std::vector<Measurement> all = read_series(folder, metric);
  std::map<std::pair<int64_t, std::string>, size_t> place;
  for (size_t i = 0; i < all.size(); ++i) place[{all[i].step, all[i].name}] = i;
  for (const Measurement& m : more) {
    const auto [at, fresh] = place.try_emplace({m.step, m.name}, all.size());
    if (fresh)
      all.push_back(m);
    else
      all[at->second] = m;
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  put_series(folder, metric, all);
}

std::vector<std::string> cut_series(const fs::path& folder, int64_t step) {
  std::vector<std::string> metrics, faults;
  if (!fs::is_directory(folder)) return faults;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path& path = entry.path();
    if (path.extension() == ".jsonl" && !path.filename().string().starts_with('.')) metrics.push_back(path.stem());
  }
  std::sort(metrics.begin(), metrics.end());
  for (const std::string& metric : metrics) {
    try {
      const FolderLock lock(folder);
      std::vector<Measurement> all = read_series(folder, metric);
      if (std::erase_if(all, [&](const Measurement& m) { return m.step > step; }) == 0) continue;
      if (!all.empty()) {
        put_series(folder, metric, all);
      } else {
        for (const char* extension : {".jsonl", ".h5"}) fs::remove(folder / (metric + extension));
      }
    } catch (const std::exception& error) {
      faults.push_back(fmt::format("what was measured after step {} stays, though the run goes another way: {}", step,
                                   error.what()));
    }
  }
  return faults;
}

}  // namespace cairn
