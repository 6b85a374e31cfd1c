#include "checkpoints/trajectory/verify.h"

#include <fmt/format.h>
#include <hdf5.h>

#include <set>

#include "checkpoints/trajectory/index.h"

namespace cairn::checkpoints::trajectory {
namespace {

namespace fs = std::filesystem;
using hdf5::Handle;
using hdf5::Id;

std::string bytes(uint64_t n) { return fmt::format("{} bytes", n); }

std::optional<Fault> check_file(const fs::path& folder, const FileEntry& wanted) {
  const fs::path path = folder / wanted.path;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return Fault{wanted.path, "missing", bytes(wanted.size), "no file"};
  const uint64_t size = fs::file_size(path, error);
  if (size != wanted.size)
    return Fault{wanted.path, size < wanted.size ? "truncated" : "too long", bytes(wanted.size), bytes(size)};
  if (const FileEntry found = digest_file(path); found.xxh3 != wanted.xxh3)
    return Fault{wanted.path, "corrupted", "XXH3-128 " + wanted.xxh3, found.xxh3};
  return std::nullopt;
}

std::string text(const std::vector<int64_t>& shape) {
  std::string s;
  for (int64_t n : shape) s += (s.empty() ? "" : " x ") + std::to_string(n);
  return s;
}

// Steps, shapes and the number of chunks: a chunk that is not there would read as fill values.
std::optional<Fault> check_contents(const fs::path& folder, const Format& format, const Segment& segment) {
  const auto malformed = [&](std::string expected, std::string found) {
    return Fault{segment.file.path, "malformed", std::move(expected), std::move(found)};
  };
  const hdf5::File file = hdf5::File::open(folder / segment.file.path);
  if (file.read<int64_t>("steps") != segment.steps) return malformed("the steps of the manifest", "others");
  const auto rows = static_cast<int64_t>(segment.steps.size());
  for (const auto& tensor : format.tensors) {
    const std::string name = fmt::format("{}/{}", group_of(format.codec), tensor.name);
    if (!file.contains(name)) return malformed(name, "no such dataset");
    std::vector<int64_t> shape{rows};
    shape.insert(shape.end(), tensor.shape.begin(), tensor.shape.end());
    if (file.shape(name) != shape) return malformed(name + " " + text(shape), text(file.shape(name)));
    const Handle set = file.dataset(name);
    const Handle list(H5Dget_create_plist(set), [](Id id) { return static_cast<int>(H5Pclose(id)); });
    std::vector<hsize_t> chunk(shape.size());
    hdf5::check(H5Pget_chunk(list, static_cast<int>(chunk.size()), chunk.data()), file, name, "read the chunk shape");
    hsize_t wanted = 1, found = 0;
    for (size_t d = 0; d < shape.size(); ++d) wanted *= (shape[d] + chunk[d] - 1) / chunk[d];
    const Handle space(H5Dget_space(set), [](Id id) { return static_cast<int>(H5Sclose(id)); });
    hdf5::check(H5Dget_num_chunks(set, space, &found), file, name, "count the chunks");
    if (found != wanted) return malformed(fmt::format("{}: {} chunks", name, wanted), std::to_string(found));
  }
  return std::nullopt;
}

// Every source of every virtual dataset is a sealed segment, and all rows come from one.
std::optional<Fault> check_join(const fs::path& folder, const Index& index) {
  const auto malformed = [&](std::string expected, std::string found) {
    return Fault{kJoinName, "malformed", std::move(expected), std::move(found)};
  };
  const hdf5::File file = hdf5::File::open(folder / kJoinName);
  std::set<std::string> known;
  for (const Segment& s : index.segments) known.insert(s.file.path);
  const auto steps = file.read<int64_t>("steps");
  for (const auto& tensor : index.format.tensors) {
    const std::string name = fmt::format("{}/{}", group_of(index.format.codec), tensor.name);
    const Handle set = file.dataset(name);
    const Handle list(H5Dget_create_plist(set), [](Id id) { return static_cast<int>(H5Pclose(id)); });
    size_t sources = 0;
    hdf5::check(H5Pget_virtual_count(list, &sources), file, name, "count the sources");
    int64_t rows = 0;
    for (size_t i = 0; i < sources; ++i) {
      char source[64] = {};
      hdf5::check(H5Pget_virtual_filename(list, i, source, sizeof source), file, name, "name a source");
      // An older join may name segments that were merged since; they go with it.
      if (!known.contains(source) && !fs::exists(folder / source))
        return malformed(fmt::format("{}: a source that is there", name), source);
      const Handle space(H5Pget_virtual_vspace(list, i), [](Id id) { return static_cast<int>(H5Sclose(id)); });
      rows += H5Sget_select_npoints(space) / std::max<int64_t>(tensor.numel(), 1);
    }
    if (rows != static_cast<int64_t>(steps.size()))
      return malformed(fmt::format("{}: sources for {} steps", name, steps.size()), std::to_string(rows));
  }
  return std::nullopt;
}

}  // namespace

bool is_trajectory(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error) || fs::exists(folder / "config.json", error)) return false;
  if (fs::exists(folder / kJoinName, error)) return true;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("segment-") && name.ends_with(".h5")) return true;
  }
  // The list of the segments stays where they are gone.
  return has_index(folder);
}

std::optional<Fault> verify(const fs::path& folder) {
  if (!fs::exists(folder / kManifestName) && !is_trajectory(folder)) return std::nullopt;
  const auto loaded = load_index(folder);
  if (const auto* fault = std::get_if<Fault>(&loaded)) return *fault;
  const Index& index = std::get<Index>(loaded);
  for (const Segment& segment : index.segments) {
    if (auto fault = check_file(folder, segment.file)) return fault;
    try {
      if (auto fault = check_contents(folder, index.format, segment)) return fault;
    } catch (const std::exception& e) {
      return Fault{segment.file.path, "malformed", "a segment of a trajectory", e.what()};
    }
  }
  std::optional<Fault> join;
  for (auto wanted = index.joins.rbegin(); wanted != index.joins.rend(); ++wanted) {
    const auto fault = check_file(folder, *wanted);
    if (!fault) {
      join.reset();
      break;
    }
    if (!join) join = fault;
  }
  if (join) return join;
  if (index.joins.empty()) return std::nullopt;
  try {
    return check_join(folder, index);
  } catch (const std::exception& e) {
    return Fault{kJoinName, "malformed", "virtual datasets over the segments", e.what()};
  }
}

}  // namespace cairn::checkpoints::trajectory
