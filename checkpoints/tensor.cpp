#include "checkpoints/tensor.h"

#include <array>

namespace cairn::checkpoints {
namespace {

struct Row {
  std::string_view name;
  size_t size;
};

// In the order of the enumeration.
constexpr std::array<Row, 15> kTypes = {{{"F32", 4},
                                         {"F64", 8},
                                         {"F16", 2},
                                         {"BF16", 2},
                                         {"I64", 8},
                                         {"I32", 4},
                                         {"I16", 2},
                                         {"I8", 1},
                                         {"U8", 1},
                                         {"U16", 2},
                                         {"U32", 4},
                                         {"U64", 8},
                                         {"BOOL", 1},
                                         {"F8_E4M3", 1},
                                         {"F8_E5M2", 1}}};

}  // namespace

size_t dtype_size(DType dtype) { return kTypes[static_cast<size_t>(dtype)].size; }

std::string_view dtype_name(DType dtype) { return kTypes[static_cast<size_t>(dtype)].name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].name == name) return static_cast<DType>(i);
  return std::nullopt;
}

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

size_t TensorView::bytes() const { return static_cast<size_t>(numel()) * dtype_size(dtype); }

}  // namespace cairn::checkpoints
