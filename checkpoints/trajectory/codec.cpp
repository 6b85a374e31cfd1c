#include "checkpoints/trajectory/codec.h"

#include <fmt/format.h>
#include <hdf5.h>
#include <zlib.h>
#include <zstd.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "checkpoints/kernels/byte_planes.h"

namespace cairn::checkpoints::trajectory {
namespace {

constexpr int kZstdLevel = 1;
// A plane that needs more than this share of its bytes is not worth the time: it is stored.
constexpr double kStoreAbove = 0.985;

// Bits of entropy a byte, from one byte in four.
double entropy(const uint8_t* bytes, size_t count) {
  std::array<std::array<uint32_t, 256>, 2> counts{};
  size_t seen = 0;
  for (size_t i = 0; i + 1 < count; i += 8, seen += 2) {
    ++counts[0][bytes[i]];
    ++counts[1][bytes[i + 1]];
  }
  double sum = 0;
  for (int b = 0; b < 256; ++b) {
    const double n = counts[0][b] + counts[1][b];
    if (n > 0) sum += n * std::log2(n);
  }
  return seen ? std::log2(static_cast<double>(seen)) - sum / static_cast<double>(seen) : 0;
}

size_t zstd_filter(unsigned flags, size_t, const unsigned*, size_t bytes, size_t* capacity, void** buffer) {
  void* out = nullptr;
  size_t size = 0, made = 0;
  if (flags & H5Z_FLAG_REVERSE) {
    const auto wanted = ZSTD_getFrameContentSize(*buffer, bytes);
    if (wanted == ZSTD_CONTENTSIZE_ERROR || wanted == ZSTD_CONTENTSIZE_UNKNOWN) return 0;
    size = wanted;
    out = H5allocate_memory(size ? size : 1, 0);
    if (out) made = ZSTD_decompress(out, size, *buffer, bytes);
  } else {
    size = ZSTD_compressBound(bytes);
    out = H5allocate_memory(size, 0);
    if (out) made = ZSTD_compress(out, size, *buffer, bytes, kZstdLevel);
  }
  if (!out || ZSTD_isError(made)) {
    H5free_memory(out);
    return 0;
  }
  H5free_memory(*buffer);
  *buffer = out;
  *capacity = size;
  return made;
}

}  // namespace

struct Compressor::State {
  Codec codec;
  std::vector<uint8_t> planes;
  std::vector<char> out;
  z_stream stream{};
  bool stream_open = false;
  ZSTD_CCtx* zstd = nullptr;
  ZSTD_DCtx* unzstd = nullptr;

  ~State() {
    if (stream_open) deflateEnd(&stream);
    ZSTD_freeCCtx(zstd);
    ZSTD_freeDCtx(unzstd);
  }

  size_t deflate_planes(size_t plane_bytes, int width) {
    if (!stream_open) {
      if (deflateInit2(&stream, 1, Z_DEFLATED, MAX_WBITS, MAX_MEM_LEVEL, Z_HUFFMAN_ONLY) != Z_OK)
        throw std::bad_alloc();
      stream_open = true;
    } else {
      deflateReset(&stream);
    }
    // A switch between storing and coding ends a block, which may cost some bytes beyond the bound of one setting.
    out.resize(deflateBound(&stream, plane_bytes * width) + 4096);
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = out.size();
    stream.avail_in = 0;
    for (int p = 0; p < width; ++p) {
      const uint8_t* plane = planes.data() + p * plane_bytes;
      const int level = entropy(plane, plane_bytes) > 8 * kStoreAbove ? 0 : 1;
      deflateParams(&stream, level, Z_HUFFMAN_ONLY);
      stream.next_in = const_cast<Bytef*>(plane);
      stream.avail_in = plane_bytes;
      if (::deflate(&stream, p + 1 == width ? Z_FINISH : Z_NO_FLUSH) == Z_STREAM_ERROR || stream.avail_in)
        throw std::runtime_error("deflate does not take the bytes of a chunk");
    }
    return stream.total_out;
  }

  // One frame whose blocks end where a plane ends: planes have little in common, and a block has one table of codes.
  size_t zstd_planes(size_t plane_bytes, int width) {
    const auto checked = [](size_t result) {
      if (ZSTD_isError(result)) throw std::runtime_error(fmt::format("zstd: {}", ZSTD_getErrorName(result)));
      return result;
    };
    if (!zstd) zstd = ZSTD_createCCtx();
    if (!zstd) throw std::bad_alloc();
    checked(ZSTD_CCtx_reset(zstd, ZSTD_reset_session_only));
    checked(ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, kZstdLevel));
    checked(ZSTD_CCtx_setPledgedSrcSize(zstd, plane_bytes * width));
    out.resize(ZSTD_compressBound(plane_bytes * width) + 64 * width);
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    for (int p = 0; p < width; ++p) {
      ZSTD_inBuffer plane{planes.data() + p * plane_bytes, plane_bytes, 0};
      if (checked(ZSTD_compressStream2(zstd, &to, &plane, p + 1 == width ? ZSTD_e_end : ZSTD_e_flush)) != 0)
        throw std::runtime_error("zstd does not take the bytes of a chunk");
    }
    return to.pos;
  }
};

Compressor::Compressor(Codec codec) : state_(std::make_unique<State>()) { state_->codec = codec; }
Compressor::~Compressor() = default;

std::span<const char> Compressor::compress(const void* elements, int64_t count, int width) {
  State& s = *state_;
  const size_t bytes = count * width;
  s.planes.resize(bytes);
  to_planes(elements, s.planes.data(), count, width);
  if (s.codec == Codec::plain) {
    const size_t n = s.deflate_planes(count, width);
    return {s.out.data(), n};
  }
  const size_t n = s.zstd_planes(count, width);
  return {s.out.data(), n};
}

void Compressor::decompress(std::span<const char> from, void* elements, int64_t count, int width) {
  State& s = *state_;
  const size_t bytes = count * width;
  s.planes.resize(bytes);
  size_t made = 0;
  if (s.codec == Codec::plain) {
    uLongf size = bytes;
    const int result = uncompress(s.planes.data(), &size, reinterpret_cast<const Bytef*>(from.data()), from.size());
    if (result != Z_OK) throw std::runtime_error(fmt::format("a chunk does not inflate: zlib says {}", result));
    made = size;
  } else {
    if (!s.unzstd) s.unzstd = ZSTD_createDCtx();
    made = ZSTD_decompressDCtx(s.unzstd, s.planes.data(), bytes, from.data(), from.size());
    if (ZSTD_isError(made))
      throw std::runtime_error(fmt::format("a chunk does not decompress: {}", ZSTD_getErrorName(made)));
  }
  if (made != bytes) throw std::runtime_error(fmt::format("a chunk holds {} bytes, expected {}", made, bytes));
  from_planes(s.planes.data(), elements, count, width);
}

void register_zstd_filter() {
  static const bool done = [] {
    H5Z_class2_t filter{};
    filter.version = H5Z_CLASS_T_VERS;
    filter.id = kZstdFilter;
    filter.encoder_present = filter.decoder_present = 1;
    filter.name = "zstd";
    filter.filter = zstd_filter;
    return H5Zregister(&filter) >= 0;
  }();
  if (!done) throw std::runtime_error("HDF5 does not take the zstd filter");
}

}  // namespace cairn::checkpoints::trajectory
