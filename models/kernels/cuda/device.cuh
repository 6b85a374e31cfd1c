// What the kernels share: elements read and written as float32, sums over the threads of a row, launches and their
// checks. Beside nvcc, g++ reads these sources: tests/models/cuda_emulator.h runs them on a CPU.
#pragma once

#ifndef CAIRN_CUDA_EMULATOR
#include <cuda_runtime_api.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "models/kernels/cuda/launchers.h"

namespace cairn::kernels::cuda {

// bfloat16 as its bits; cuda_bf16.h would be most of a file's compile time.
struct Bfloat16 {
  uint16_t bits;
};

__device__ inline float load(const float* x) { return *x; }
__device__ inline float load(const Bfloat16* x) { return __uint_as_float(static_cast<uint32_t>(x->bits) << 16); }
__device__ inline void store(float value, float* to) { *to = value; }
// To nearest even; NaN becomes 0x7FC0, as c10::BFloat16 and the CPU's passes have it.
__device__ inline void store(float value, Bfloat16* to) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

template <class T>
__device__ inline T* row(const Rows& rows, int64_t r) {
  return static_cast<T*>(rows.data) + (rows.inner == 1
                                           ? r * rows.outer_stride
                                           : r / rows.inner * rows.outer_stride + r % rows.inner * rows.inner_stride);
}

// Sum over the kThreads threads (a multiple of 32) that work on a row; all of them call it and get the same bits. Where
// kThreads is more than a warp, the row has the block to itself.
template <int kThreads>
__device__ inline float row_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  if constexpr (kThreads > 32) {
    __shared__ float warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = warps[0];
#pragma unroll
    for (int w = 1; w < kThreads / 32; ++w) value += warps[w];
    __syncthreads();  // before the next sum writes there
  }
  return value;
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), as a function.
template <class... Parameters, class... Arguments>
inline void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   [[maybe_unused]] Stream stream, Arguments... arguments) {
#ifdef CAIRN_CUDA_EMULATOR
  emulator::launch(kernel, grid, block, shared_bytes, arguments...);
#else
  if (shared_bytes > 48 * 1024)  // more than that has to be asked for; where refused, the launch is too
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  // clang-format on
#endif
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ inline T* dynamic_shared() {
#ifdef CAIRN_CUDA_EMULATOR
  return static_cast<T*>(emulator::Machine::self().dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

inline unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

// f(an element of the type)
template <class F>
void by_type(Type type, F f) {
  if (type == Type::float32)
    f(float{});
  else
    f(Bfloat16{});
}

}  // namespace cairn::kernels::cuda
