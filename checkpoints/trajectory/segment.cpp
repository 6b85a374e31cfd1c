#include "checkpoints/trajectory/segment.h"

#include <fmt/format.h>
#include <hdf5.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

namespace cairn::checkpoints::trajectory {
namespace {

namespace fs = std::filesystem;
using hdf5::Handle;
using hdf5::Id;

constexpr int64_t kWholeBelow = 256 << 10;  // bytes: tensors below share chunks over steps
constexpr int64_t kPieceBytes = 512 << 10;
constexpr int64_t kChunkSteps = 16;

int close_space(Id id) { return H5Sclose(id); }
int close_list(Id id) { return H5Pclose(id); }

hdf5::Type word_type(const Format& format) {
  if (format.codec != Codec::delta) return format.dtype;
  return format.dtype == hdf5::Type::bf16 ? hdf5::Type::u16 : hdf5::Type::u32;
}

std::string dataset_name(const Format& format, size_t tensor) {
  return fmt::format("{}/{}", group_of(format.codec), format.tensors[tensor].name);
}

// Where a chunk begins, in elements of the dataset.
std::vector<hsize_t> chunk_offset(const Placement& p, int64_t row, int64_t piece) {
  std::vector<hsize_t> offset(p.chunk.size(), 0);
  offset[0] = row;
  if (p.pieces > 1) offset[p.axis] = piece * p.rows;
  return offset;
}

}  // namespace

Placement place(const Format::Tensor& tensor, int width) {
  Placement p;
  const int64_t numel = tensor.numel(), bytes = numel * width;
  p.chunk.push_back(1);
  p.chunk.insert(p.chunk.end(), tensor.shape.begin(), tensor.shape.end());
  p.elements = numel;
  if (bytes < kWholeBelow) {
    p.steps = bytes > 0 ? std::min(kChunkSteps, (kWholeBelow + bytes - 1) / bytes) : 1;
    p.chunk[0] = p.steps;
    return p;
  }
  size_t axis = 0;
  while (tensor.shape[axis] == 1) ++axis;  // there is one: the tensor is large
  const int64_t extent = tensor.shape[axis];
  const int64_t wanted = std::clamp<int64_t>(bytes / kPieceBytes, 1, extent);
  p.axis = axis + 1;
  p.rows = (extent + wanted - 1) / wanted;
  p.pieces = (extent + p.rows - 1) / p.rows;
  p.chunk[p.axis] = p.rows;
  p.elements = numel / extent * p.rows;
  return p;
}

SegmentWriter::SegmentWriter(fs::path path, const Format& format, int64_t capacity)
    : format_(format),
      capacity_(capacity),
      width_(static_cast<int>(hdf5::type_size(format.dtype))),
      file_(hdf5::File::create(path)),
      compressor_(format.codec) {
  register_zstd_filter();
  for (size_t t = 0; t < format.tensors.size(); ++t) {
    Tensor tensor;
    tensor.placement = place(format.tensors[t], width_);
    tensor.name = dataset_name(format, t);
    tensor.numel = format.tensors[t].numel();
    tensor.shape = format.tensors[t].shape;
    const Placement& p = tensor.placement;
    std::vector<hsize_t> now{0}, most{static_cast<hsize_t>(capacity)};
    for (int64_t extent : tensor.shape) now.push_back(extent), most.push_back(extent);
    most[0] = (capacity + p.steps - 1) / p.steps * p.steps;
    const std::vector<hsize_t> chunk(p.chunk.begin(), p.chunk.end());
    const Handle space(H5Screate_simple(static_cast<int>(now.size()), now.data(), most.data()), close_space);
    const Handle list(H5Pcreate(H5P_DATASET_CREATE), close_list), links(H5Pcreate(H5P_LINK_CREATE), close_list);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_chunk(list, static_cast<int>(chunk.size()), chunk.data());
    H5Pset_shuffle(list);
    if (format.codec == Codec::plain) {
      H5Pset_deflate(list, 1);
    } else {
      const unsigned level = 1;
      H5Pset_filter(list, kZstdFilter, H5Z_FLAG_MANDATORY, 1, &level);
    }
    if (format.codec != Codec::delta) {
      const float nan = std::numeric_limits<float>::quiet_NaN();
      H5Pset_fill_value(list, H5T_NATIVE_FLOAT, &nan);
    }
    const Id type = hdf5::disk_type(word_type(format));
    tensor.dataset =
        Handle(hdf5::check(H5Dcreate2(file_.id(), tensor.name.c_str(), type, space, links, list, H5P_DEFAULT), file_,
                           tensor.name, "create the dataset"),
               [](Id id) { return static_cast<int>(H5Dclose(id)); });
    if (p.steps > 1) tensor.held.resize(p.steps * tensor.numel * width_);
    tensors_.push_back(std::move(tensor));
  }
  file_.set_attribute("/", "format", "cairn-trajectory-segment");
  file_.set_attribute("/", "version", int64_t{1});
  file_.set_attribute("/", "codec", codec_name(format.codec));
  file_.set_attribute("/", "dtype", hdf5::type_name(format.dtype));
}

SegmentWriter::~SegmentWriter() {
  if (finished_) return;
  tensors_.clear();
  std::error_code ignored;
  fs::remove(file_.path(), ignored);
}

void SegmentWriter::begin(int64_t step, bool key) {
  steps_.push_back(step);
  keys_.push_back(key);
  for (Tensor& t : tensors_)
    if (t.placement.steps == 1) extend(t, rows());
}

void SegmentWriter::extend(Tensor& tensor, int64_t rows) {
  std::vector<hsize_t> extent{static_cast<hsize_t>(rows)};
  extent.insert(extent.end(), tensor.shape.begin(), tensor.shape.end());
  hdf5::check(H5Dset_extent(tensor.dataset, extent.data()), file_, tensor.name, "extend the dataset");
}

void SegmentWriter::write_chunk(Tensor& tensor, int64_t row, int64_t piece, std::span<const char> bytes) {
  const auto offset = chunk_offset(tensor.placement, row, piece);
  hdf5::check(H5Dwrite_chunk(tensor.dataset, H5P_DEFAULT, 0, offset.data(), bytes.size(), bytes.data()), file_,
              tensor.name, "write a chunk");
}

void SegmentWriter::write_piece(size_t tensor, int64_t piece, std::span<const char> bytes) {
  const std::lock_guard lock(mutex_);
  write_chunk(tensors_[tensor], rows() - 1, piece, bytes);
}

void* SegmentWriter::slot(size_t tensor) {
  Tensor& t = tensors_[tensor];
  return t.held.data() + (rows() - 1) % t.placement.steps * t.numel * width_;
}

void SegmentWriter::flush(Tensor& tensor, int64_t first_row, int64_t rows) {
  const int64_t bytes = tensor.numel * width_;
  std::fill(tensor.held.begin() + rows * bytes, tensor.held.end(), 0);
  extend(tensor, first_row + rows);
  if (tensor.numel > 0)
    write_chunk(tensor, first_row, 0,
                compressor_.compress(tensor.held.data(), tensor.placement.steps * tensor.numel, width_));
}

void SegmentWriter::end() {
  for (Tensor& t : tensors_) {
    const int64_t steps = t.placement.steps;
    if (steps > 1 && rows() % steps == 0) flush(t, rows() - steps, steps);
  }
  file_.check_disk();
}

Segment SegmentWriter::finish() {
  for (Tensor& t : tensors_) {
    const int64_t left = rows() % t.placement.steps;
    if (t.placement.steps > 1 && left > 0) flush(t, rows() - left, left);
  }
  tensors_.clear();
  file_.write("steps", steps_);
  if (format_.codec == Codec::delta) file_.write("keys", keys_);
  file_.finish();
  finished_ = true;
  return {digest_file(file_.path()), steps_};
}

SegmentReader::SegmentReader(const fs::path& path, const Format& format)
    : format_(format),
      width_(static_cast<int>(hdf5::type_size(format.dtype))),
      file_(hdf5::File::open(path)),
      tensors_(format.tensors.size()),
      steps_(file_.read<int64_t>("steps")),
      compressor_(format.codec) {
  register_zstd_filter();
  keys_.assign(steps_.size(), 1);
  if (format.codec == Codec::delta) keys_ = file_.read<uint8_t>("keys");
  if (keys_.size() != steps_.size())
    throw std::runtime_error(fmt::format("{}: {} keys for {} steps", path.string(), keys_.size(), steps_.size()));
}

SegmentReader::Tensor& SegmentReader::open(size_t tensor) {
  Tensor& t = tensors_.at(tensor);
  if (t.dataset >= 0) return t;
  t.name = dataset_name(format_, tensor);
  const auto& shape = format_.tensors[tensor].shape;
  t.dataset = file_.dataset(t.name);
  // Another version may have cut it otherwise: the file says how.
  const Handle list(H5Dget_create_plist(t.dataset), close_list);
  std::vector<hsize_t> chunk(shape.size() + 1);
  if (hdf5::check(H5Pget_chunk(list, static_cast<int>(chunk.size()), chunk.data()), file_, t.name,
                  "read the chunk shape") != static_cast<int>(chunk.size()))
    throw std::runtime_error(
        fmt::format("{}: {}: another number of dimensions than the tensor's", file_.path().string(), t.name));
  Placement& p = t.placement;
  p.chunk.assign(chunk.begin(), chunk.end());
  p.steps = p.chunk[0];
  p.elements = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    p.elements *= p.chunk[d + 1];
    if (p.chunk[d + 1] == shape[d]) continue;
    p.axis = d + 1;
    p.rows = p.chunk[d + 1];
    p.pieces = (shape[d] + p.rows - 1) / p.rows;
  }
  return t;
}

const Placement& SegmentReader::placement(size_t tensor) { return open(tensor).placement; }

std::span<const char> SegmentReader::raw_chunk(size_t tensor, int64_t row, int64_t piece) {
  Tensor& t = open(tensor);
  const auto offset = chunk_offset(t.placement, row, piece);
  hsize_t size = 0;
  hdf5::check(H5Dget_chunk_storage_size(t.dataset, offset.data(), &size), file_, t.name,
              fmt::format("find the chunk of row {}", row));
  if (size == 0)
    throw std::runtime_error(fmt::format("{}: {}: the chunk of row {} is missing", file_.path().string(), t.name, row));
  bytes_.resize(size);
  uint32_t skipped = 0;
  hdf5::check(H5Dread_chunk(t.dataset, H5P_DEFAULT, offset.data(), &skipped, bytes_.data()), file_, t.name,
              fmt::format("read the chunk of row {}", row));
  return bytes_;
}

void SegmentReader::read(size_t tensor, int64_t first, int64_t count, void* words) {
  Tensor& t = open(tensor);
  const Placement& p = t.placement;
  const int64_t numel = format_.tensors[tensor].numel();
  if (first < 0 || count < 0 || first + count > rows())
    throw std::out_of_range(fmt::format("{}: rows {} to {}, there are {}", t.name, first, first + count, rows()));
  if (numel == 0) return;
  const auto unpack = [&](std::span<const char> bytes, void* to, int64_t n) {
    try {
      compressor_.decompress(bytes, to, n, width_);
    } catch (const std::exception& e) {
      throw std::runtime_error(fmt::format("{}: {}: row {}: {}", file_.path().string(), t.name, first, e.what()));
    }
  };
  for (int64_t row = first; row < first + count; ++row) {
    char* to = static_cast<char*>(words) + (row - first) * numel * width_;
    if (p.steps > 1) {
      const int64_t begin = row / p.steps * p.steps;
      if (t.cached != begin) {
        t.words.resize(p.steps * numel * width_);
        unpack(raw_chunk(tensor, begin, 0), t.words.data(), p.steps * numel);
        t.cached = begin;
      }
      std::memcpy(to, t.words.data() + (row - begin) * numel * width_, numel * width_);
      continue;
    }
    for (int64_t piece = 0; piece < p.pieces; ++piece) {
      const int64_t begin = piece * p.elements, n = std::min(p.elements, numel - begin);
      const auto bytes = raw_chunk(tensor, row, piece);
      if (n == p.elements) {
        unpack(bytes, to + begin * width_, n);
      } else {
        piece_.resize(p.elements * width_);
        unpack(bytes, piece_.data(), p.elements);
        std::memcpy(to + begin * width_, piece_.data(), n * width_);
      }
    }
  }
}

Segment merge_segments(const fs::path& folder, const Format& format, std::span<const Segment> segments,
                       const fs::path& target, int64_t last_step) {
  int64_t rows = 0;
  for (const Segment& s : segments)
    rows += std::upper_bound(s.steps.begin(), s.steps.end(), last_step) - s.steps.begin();
  SegmentWriter out(target, format, rows);
  for (const Segment& segment : segments) {
    SegmentReader in(folder / segment.file.path, format);
    if (in.steps() != segment.steps)
      throw std::runtime_error(
          fmt::format("{}: its steps are not those of the manifest", (folder / segment.file.path).string()));
    for (int64_t row = 0; row < in.rows() && in.steps()[row] <= last_step; ++row) {
      out.begin(in.steps()[row], in.keys()[row]);
      for (size_t t = 0; t < format.tensors.size(); ++t) {
        if (format.tensors[t].numel() == 0) continue;
        const Placement& to = out.placement(t);
        if (to.steps > 1) {
          in.read(t, row, 1, out.slot(t));
          continue;
        }
        if (in.placement(t).chunk != to.chunk)
          throw std::runtime_error(fmt::format("{}: {}: chunks of another shape than this program writes; export it",
                                               segment.file.path, format.tensors[t].name));
        for (int64_t piece = 0; piece < to.pieces; ++piece) out.write_piece(t, piece, in.raw_chunk(t, row, piece));
      }
      out.end();
    }
  }
  return out.finish();
}

}  // namespace cairn::checkpoints::trajectory
