// Opens the CUDA module. What is missing is found out in the order in which a user would set it up: driver, GPU,
// module, libraries.
#include <dlfcn.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include <cstring>
#include <filesystem>
#include <mutex>

#include "models/kernels/cuda/table.h"

namespace cairn::kernels::cuda {
namespace {

struct Module {
  void* handle = nullptr;
  const Table* table = nullptr;
  std::string why_not;
};

// The driver's own interface, so that a machine without a GPU loads half a gigabyte of libraries for nothing.
std::string driver_fault(int* version) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr)
    return "there is no NVIDIA driver on this machine (libcuda.so.1 cannot be opened); in a container, pass the GPUs "
           "in "
           "(docker run --gpus all)";
  const auto initialise = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count_devices = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  const auto get_version = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  if (initialise == nullptr || count_devices == nullptr || get_version == nullptr)
    return "libcuda.so.1 is no NVIDIA driver (cuInit is missing)";
  int devices = 0;
  const int error = initialise(0);
  if (error != 0) return fmt::format("the NVIDIA driver finds no GPU (cuInit gives error {}); see nvidia-smi", error);
  if (count_devices(&devices) != 0 || devices == 0)
    return "the NVIDIA driver shows no GPU to this process; see nvidia-smi and CUDA_VISIBLE_DEVICES";
  get_version(version);
  return "";
}

std::string last_dl_error() {
  const char* error = dlerror();
  return error == nullptr ? "unknown error" : error;
}

std::string open(Module& module) {
  int driver = 0;
  if (const std::string fault = driver_fault(&driver); !fault.empty()) return fault;
  const auto path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libcairn_cuda.so";
  if (!std::filesystem::exists(path))
    return fmt::format(
        "this build is for the CPU alone ({} is not there): install the CUDA toolkit (nvcc) and build again",
        path.string());
  // Global: the module, and CUDA libraries that LibTorch opens later, look for these symbols.
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr)
    return fmt::format(
        "LibTorch's CUDA library cannot be opened ({}); install the torch wheel with its CUDA dependencies",
        last_dl_error());
  module.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module.handle == nullptr)
    return fmt::format("the CUDA module cannot be opened ({}); build again", last_dl_error());
  const auto make = reinterpret_cast<const Table* (*)()>(dlsym(module.handle, "cairn_cuda_table"));
  const Table* table = make == nullptr ? nullptr : make();
  if (table == nullptr || table->size != sizeof(Table) || std::strcmp(table->torch, TORCH_VERSION) != 0)
    return fmt::format("{} is of another build than this program (LibTorch {}, expected {}); build again",
                       path.string(), table == nullptr ? "unknown" : table->torch, TORCH_VERSION);
  if (driver / 1000 < table->cuda / 1000)
    return fmt::format("the NVIDIA driver supports CUDA {}.{}, expected {}.x: update the driver", driver / 1000,
                       driver % 1000 / 10, table->cuda / 1000);
  if (!at::hasCUDA())
    return "LibTorch finds no usable GPU, though the driver shows one; was CUDA asked for before the module was "
           "opened?";
  module.table = table;
  return "";
}

Module& module() {
  static Module opened;
  return opened;
}

}  // namespace

bool open_module(std::string* why_not) {
  static std::once_flag once;
  std::call_once(once, [] { module().why_not = open(module()); });
  if (why_not != nullptr) *why_not = module().why_not;
  return module().table != nullptr;
}

const Table* table() { return module().table; }

void* module_symbol(const char* name) { return module().table == nullptr ? nullptr : dlsym(module().handle, name); }

}  // namespace cairn::kernels::cuda
