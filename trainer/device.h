// Where a run computes. The program links no CUDA; a GPU is reached through a module that is opened here.
//
// Never run on a GPU so far.
#pragma once

#include <ATen/ATen.h>

#include <string>

namespace cairn {

// Opens LibTorch's CUDA library and build/bin/libcairn_cuda.so, registers the backend "nccl" and the optimizer's
// passes, and makes LibTorch choose the same bits every time: deterministic algorithms, a fixed workspace of cuBLAS
// (CUBLAS_WORKSPACE_CONFIG, unless it is set), no TF32 and no bfloat16 sums in float32's place. False where that cannot
// be; *why_not (may be null) then says what is missing and what to do, in half a sentence for "train.device: cuda:
// ...". Call it before the first backward pass of the process: LibTorch looks for GPUs once only. Costs 0.3 s and 400
// MB where there is a GPU, nothing where there is no driver.
bool open_cuda_module(std::string* why_not);

// The device that `train.device` (auto, cpu, cuda) means for this rank, made current on this thread. auto: the GPU
// where one can be used, else the CPU. Throws std::invalid_argument where cuda is asked and cannot be, or where this
// machine has fewer GPUs than local ranks; the caller puts file and line before it.
at::Device choose_device(const std::string& wanted, int local_rank = 0);

// Whether optimizers on a GPU use the module's hand-written passes; `train.kernels` other than fast says no.
void use_device_passes(bool wanted);

// What of a run's devices decides bits, for build.json: "cpu", or the GPU's kind and the CUDA version.
std::string device_name(at::Device device);

// What a user is told where `device` is a GPU; empty for the CPU.
std::string device_warning(at::Device device);

// Waits until `device` has done all that it was given; nothing to do on the CPU.
void wait_for(at::Device device);

// GFLOP/s of a square product of `type` on a GPU, measured for about `seconds` (environment.h has the CPU's).
double device_peak_gflops(at::Device device, at::ScalarType type, double seconds);

}  // namespace cairn
