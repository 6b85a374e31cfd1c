// trajectory.h5: no values, only where they lie.
#include <fmt/format.h>
#include <hdf5.h>

#include <limits>

#include "checkpoints/trajectory/writer.h"

namespace cairn::checkpoints::trajectory {

using hdf5::Handle;
using hdf5::Id;

FileEntry write_join(const std::filesystem::path& path, const Index& index) {
  const auto close_space = [](Id id) { return static_cast<int>(H5Sclose(id)); };
  const Format& format = index.format;
  const std::vector<int64_t> steps = index.steps();
  hdf5::File file = hdf5::File::create(path);
  file.write("steps", steps);
  const bool delta = format.codec == Codec::delta;
  // The words of a delta are integers; all else is read as numbers, whatever type the bits have.
  const Id type = hdf5::disk_type(!delta                             ? format.dtype
                                  : format.dtype == hdf5::Type::bf16 ? hdf5::Type::u16
                                                                     : hdf5::Type::u32);

  const auto join = [&](const std::string& name, Id type, const std::vector<int64_t>& shape, bool floats) {
    std::vector<hsize_t> extent{steps.size()}, start(shape.size() + 1, 0);
    extent.insert(extent.end(), shape.begin(), shape.end());
    const int rank = static_cast<int>(extent.size());
    const Handle whole(H5Screate_simple(rank, extent.data(), nullptr), close_space);
    const Handle list(H5Pcreate(H5P_DATASET_CREATE), [](Id id) { return static_cast<int>(H5Pclose(id)); });
    const Handle links(H5Pcreate(H5P_LINK_CREATE), [](Id id) { return static_cast<int>(H5Pclose(id)); });
    H5Pset_create_intermediate_group(links, 1);
    if (floats) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      H5Pset_fill_value(list, H5T_NATIVE_FLOAT, &nan);
    }
    for (const Segment& segment : index.segments) {
      std::vector<hsize_t> rows = extent;
      rows[0] = segment.steps.size();
      const Handle source(H5Screate_simple(rank, rows.data(), nullptr), close_space);
      H5Sselect_hyperslab(whole, H5S_SELECT_SET, start.data(), nullptr, rows.data(), nullptr);
      hdf5::check(H5Pset_virtual(list, whole, segment.file.path.c_str(), name.c_str(), source), file, name,
                  "name a source");
      start[0] += rows[0];
    }
    H5Sselect_all(whole);
    const Handle made(hdf5::check(H5Dcreate2(file.id(), name.c_str(), type, whole, links, list, H5P_DEFAULT), file,
                                  name, "create the virtual dataset"),
                      [](Id id) { return static_cast<int>(H5Dclose(id)); });
  };
  if (!index.segments.empty()) {
    for (const auto& tensor : format.tensors)
      join(fmt::format("{}/{}", group_of(format.codec), tensor.name), type, tensor.shape, !delta);
    if (delta) join("keys", hdf5::disk_type(hdf5::Type::u8), {}, false);
  }
  file.set_attribute("/", "format", "cairn-trajectory");
  file.set_attribute("/", "version", int64_t{1});
  file.set_attribute("/", "codec", codec_name(format.codec));
  file.set_attribute("/", "dtype", hdf5::type_name(format.dtype));
  if (delta && !index.segments.empty()) {
    file.set_attribute("delta", "words",
                       "zigzag of (bits - bits of the stored step before) modulo 2^width: 0 -1 1 -2 2 -> 0 1 2 3 4");
    file.set_attribute("delta", "keys",
                       "rows k with keys[k] = 1 are minus zero instead: the bits themselves, in zigzag");
    file.set_attribute("delta", "bits", hdf5::type_name(format.dtype));
  }
  file.finish();
  FileEntry entry = digest_file(path);
  entry.path = kJoinName;
  return entry;
}

}  // namespace cairn::checkpoints::trajectory
