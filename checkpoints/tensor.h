// Tensors as this folder sees them: a name, an element type, a shape and bytes that someone else owns.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::checkpoints {

enum class DType { F32, F64, F16, BF16, I64, I32, I16, I8, U8, U16, U32, U64, BOOL, F8_E4M3, F8_E5M2 };

/// Bytes of one element.
size_t dtype_size(DType dtype);

/// The name that safetensors gives the type: "F32", "BF16", ...
std::string_view dtype_name(DType dtype);

/// The type of a safetensors name; nothing where the name is unknown.
std::optional<DType> dtype_from_name(std::string_view name);

/// A contiguous row-major tensor in memory owned by the caller (or by an open file). `data` needs no alignment.
struct TensorView {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // empty: a scalar
  const void* data = nullptr;

  int64_t numel() const;
  size_t bytes() const;
};

}  // namespace cairn::checkpoints
