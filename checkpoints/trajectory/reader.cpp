#include "checkpoints/trajectory/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "checkpoints/kernels/byte_planes.h"

namespace cairn::checkpoints::trajectory {

Reader::Reader(std::filesystem::path folder)
    : folder_(std::move(folder)), index_(read_index(folder_)), steps_(index_.steps()) {
  first_row_.push_back(0);
  for (const Segment& s : index_.segments)
    first_row_.push_back(first_row_.back() + static_cast<int64_t>(s.steps.size()));
}

std::optional<int64_t> Reader::row_of(int64_t step) const {
  const auto found = std::lower_bound(steps_.begin(), steps_.end(), step);
  if (found == steps_.end() || *found != step) return std::nullopt;
  return found - steps_.begin();
}

size_t Reader::tensor(const std::string& name) const {
  for (size_t t = 0; t < format().tensors.size(); ++t)
    if (format().tensors[t].name == name) return t;
  throw std::runtime_error(
      fmt::format("{}: no tensor '{}' is stored, but {} others", folder_.string(), name, format().tensors.size()));
}

SegmentReader& Reader::segment(size_t number) {
  if (open_number_ != number) {
    if (open_) bytes_of_closed_ += open_->bytes_read();
    open_number_.reset();
    open_ = std::make_unique<SegmentReader>(folder_ / index_.segments[number].file.path, format());
    if (open_->steps() != index_.segments[number].steps)
      throw std::runtime_error(fmt::format("{}: its steps are not those of {}",
                                           (folder_ / index_.segments[number].file.path).string(), kManifestName));
    open_number_ = number;
  }
  return *open_;
}

uint64_t Reader::bytes_read() const { return bytes_of_closed_ + (open_ ? open_->bytes_read() : 0); }

bool Reader::is_key(int64_t row) {
  if (format().codec != Codec::delta) return true;
  const auto number = std::upper_bound(first_row_.begin(), first_row_.end(), row) - first_row_.begin() - 1;
  return segment(number).keys()[row - first_row_[number]];
}

void Reader::read_bits(size_t t, int64_t first, int64_t count, void* bits) {
  const auto rows = static_cast<int64_t>(steps_.size());
  if (first < 0 || count < 0 || first + count > rows)
    throw std::out_of_range(
        fmt::format("{}: rows {} to {}, there are {}", folder_.string(), first, first + count, rows));
  const int64_t numel = format().tensors.at(t).numel();
  const int64_t width = hdf5::type_size(format().dtype), bytes = numel * width;
  auto* out = static_cast<char*>(bits);
  const auto words = [&](int64_t row, char* to) {
    const auto number = std::upper_bound(first_row_.begin(), first_row_.end(), row) - first_row_.begin() - 1;
    segment(number).read(t, row - first_row_[number], 1, to);
  };
  if (format().codec != Codec::delta) {
    for (int64_t k = 0; k < count; ++k) words(first + k, out + k * bytes);
    return;
  }
  if (count == 0) return;
  int64_t row = first;
  while (row > 0 && !is_key(row)) --row;
  std::vector<char> sum(bytes), word(bytes);
  for (; row < first + count; ++row) {
    words(row, word.data());
    const bool key = is_key(row);
    if (width == 2) {
      auto* s = reinterpret_cast<uint16_t*>(sum.data());
      decode_delta(reinterpret_cast<const uint16_t*>(word.data()), key ? nullptr : s, s, numel);
    } else {
      auto* s = reinterpret_cast<uint32_t*>(sum.data());
      decode_delta(reinterpret_cast<const uint32_t*>(word.data()), key ? nullptr : s, s, numel);
    }
    if (row >= first) std::memcpy(out + (row - first) * bytes, sum.data(), bytes);
  }
}

std::vector<float> Reader::read(size_t t, int64_t first, int64_t count) {
  const int64_t n = format().tensors.at(t).numel() * std::max<int64_t>(count, 0);
  std::vector<float> values(n);
  if (format().dtype == hdf5::Type::f32) {
    read_bits(t, first, count, values.data());
    return values;
  }
  std::vector<uint16_t> bits(n);
  read_bits(t, first, count, bits.data());
  widen_bf16(bits.data(), reinterpret_cast<uint32_t*>(values.data()), n);
  return values;
}

}  // namespace cairn::checkpoints::trajectory
