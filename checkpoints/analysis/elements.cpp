#include "checkpoints/analysis/elements.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <stdexcept>

namespace cairn::checkpoints {
namespace {

float from_half(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and beyond round to infinity
  if (magnitude < 0x38800000u) {                       // below 2^-14: adding 0.5 leaves multiples of 2^-24, rounded
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

float from_bfloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

template <class Stored, class Convert>
void read_as(const void* data, int64_t first, std::span<double> out, Convert convert) {
  const char* at = static_cast<const char*>(data) + first * sizeof(Stored);
  for (size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, at + i * sizeof(Stored), sizeof(Stored));
    out[i] = convert(stored);
  }
}

template <class Stored, class Convert>
void write_as(std::span<const double> values, void* data, Convert convert) {
  char* at = static_cast<char*>(data);
  for (size_t i = 0; i < values.size(); ++i) {
    const Stored stored = convert(values[i]);
    std::memcpy(at + i * sizeof(Stored), &stored, sizeof(Stored));
  }
}

}  // namespace

bool is_floating(DType dtype) {
  return dtype == DType::F32 || dtype == DType::F64 || dtype == DType::F16 || dtype == DType::BF16;
}

void read_elements(const TensorView& tensor, int64_t first, std::span<double> out) {
  switch (tensor.dtype) {
    case DType::F64:
      return read_as<double>(tensor.data, first, out, [](double x) { return x; });
    case DType::F32:
      return read_as<float>(tensor.data, first, out, [](float x) { return x; });
    case DType::F16:
      return read_as<uint16_t>(tensor.data, first, out, from_half);
    case DType::BF16:
      return read_as<uint16_t>(tensor.data, first, out, from_bfloat);
    default:
      throw std::invalid_argument(fmt::format("tensor '{}' has type {}, expected F32, F64, F16 or BF16", tensor.name,
                                              dtype_name(tensor.dtype)));
  }
}

void write_elements(std::span<const double> values, DType dtype, void* out) {
  const auto single = [](double x) { return static_cast<float>(x); };
  switch (dtype) {
    case DType::F64:
      return write_as<double>(values, out, [](double x) { return x; });
    case DType::F32:
      return write_as<float>(values, out, single);
    case DType::F16:
      return write_as<uint16_t>(values, out, [&](double x) { return to_half(single(x)); });
    case DType::BF16:
      return write_as<uint16_t>(values, out, [&](double x) { return to_bfloat(single(x)); });
    default:
      throw std::invalid_argument(
          fmt::format("weights cannot be written as {}: expected F32, F64, F16 or BF16", dtype_name(dtype)));
  }
}

void round_elements(std::span<double> values, DType dtype) {
  for (double& x : values) {
    const float single = static_cast<float>(x);
    if (dtype == DType::F32) x = single;
    if (dtype == DType::F16) x = from_half(to_half(single));
    if (dtype == DType::BF16) x = from_bfloat(to_bfloat(single));
  }
}

}  // namespace cairn::checkpoints
