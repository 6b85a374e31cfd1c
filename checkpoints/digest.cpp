#include "checkpoints/digest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "checkpoints/kernels/digest_simd.h"

namespace cairn::checkpoints {
namespace {

constexpr int64_t kChunk = 64 * kDigestBlock;  // elements that one thread takes at a time
constexpr size_t kSerialBytes = 256 << 10;     // below this, waking the other threads costs more than it gives

// FNV-1a, 64 bits.
uint64_t hash_name(std::string_view name) {
  uint64_t h = 0xCBF29CE484222325;
  for (char c : name) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return h;
}

struct Chunk {
  const char* data;
  size_t element_size;
  int64_t first, count;
  uint64_t name_hash;
};

void add_chunks(const TensorView& view, int64_t first, std::vector<Chunk>& chunks) {
  if (first < 0)
    throw std::invalid_argument(fmt::format("digest of '{}': first index {} is negative", view.name, first));
  const auto* data = static_cast<const char*>(view.data);
  const size_t size = dtype_size(view.dtype);
  const uint64_t name_hash = hash_name(view.name);
  for (int64_t left = view.numel(); left > 0;) {
    const int64_t count = std::min(left, kChunk - first % kChunk);  // chunks end where blocks end
    chunks.push_back({data, size, first, count, name_hash});
    data += count * size;
    first += count;
    left -= count;
  }
}

Digest sum_chunks(const std::vector<Chunk>& chunks) {
  size_t bytes = 0;
  for (const Chunk& c : chunks) bytes += c.count * c.element_size;
  uint64_t lo = 0, hi = 0;
#pragma omp parallel for schedule(dynamic, 4) reduction(+ : lo, hi) if (bytes > kSerialBytes)
  for (size_t i = 0; i < chunks.size(); ++i) {
    const Chunk& c = chunks[i];
    uint64_t sums[2] = {0, 0};
    digest_elements(c.data, c.element_size, c.first, c.count, c.name_hash, sums);
    lo += sums[0];
    hi += sums[1];
  }
  return {lo, hi};
}

}  // namespace

Digest& Digest::operator+=(const Digest& other) {
  lo += other.lo;
  hi += other.hi;
  return *this;
}

Digest& Digest::operator-=(const Digest& other) {
  lo -= other.lo;
  hi -= other.hi;
  return *this;
}

std::string Digest::hex() const { return fmt::format("{:016x}{:016x}", hi, lo); }

Digest Digest::from_hex(std::string_view text) {
  Digest d;
  const char* begin = text.data();
  const bool digits = text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  if (!digits)
    throw std::invalid_argument(fmt::format("'{}' is not a digest: 32 lower-case hexadecimal digits expected", text));
  std::from_chars(begin, begin + 16, d.hi, 16);
  std::from_chars(begin + 16, begin + 32, d.lo, 16);
  return d;
}

Digest digest_tensor(const TensorView& view, int64_t first_index) {
  std::vector<Chunk> chunks;
  add_chunks(view, first_index, chunks);
  return sum_chunks(chunks);
}

Digest digest_tensors(std::span<const TensorView> views) {
  std::vector<Chunk> chunks;
  for (const TensorView& view : views) add_chunks(view, 0, chunks);
  return sum_chunks(chunks);
}

Digest digest_tensor_reference(const TensorView& view, int64_t first_index) {
  const size_t size = dtype_size(view.dtype);
  const uint64_t name_hash = hash_name(view.name);
  Digest digest;
  for (int64_t k = 0; k < view.numel(); ++k) {
    uint64_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(view.data) + k * size, size);  // little-endian: zero-extended
    const int64_t i = first_index + k, j = i % kDigestBlock;
    const uint64_t u = bits ^ bits >> 32 ^ (mix64(kDigestBlock + j) & 0xFFFFFFFF);
    const auto term = [&](int lane) {
      const uint64_t m = (mix64(j) >> 32 * lane & 0xFFFFFFFF) | 1;
      const uint64_t p = u * m;
      return digest_key(name_hash, lane, i / kDigestBlock) * (p ^ p >> 32);
    };
    digest += {term(0), term(1)};
  }
  return digest;
}

}  // namespace cairn::checkpoints
