#include "trainer/environment.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <malloc.h>
#include <sys/resource.h>
#include <torch/headeronly/version.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <thread>

namespace cairn {
namespace {

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string line, model, family, number;
  while (std::getline(info, line) && !line.empty()) {
    const auto colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (line.starts_with("model name")) model = line.substr(colon + 2);
    if (line.starts_with("cpu family")) family = line.substr(colon + 2);
    if (line.starts_with("model\t")) number = line.substr(colon + 2);
  }
  return fmt::format("{} (family {}, model {})", model, family, number);
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

}  // namespace

void prepare_process() {
  // A reader that goes away (`cairn train ... | head`) is an error of the write, not the end of the process.
  std::signal(SIGPIPE, SIG_IGN);
  setenv("MKL_CBWR", has_avx512() ? "AVX512,STRICT" : "AVX2,STRICT", 0);
  // Activations come and go with every micro-batch: without this each would be mapped, faulted in and unmapped again.
  // Blocks above 32 MiB (chunks of logits, large weights) are mapped: on the heap they leave holes that nothing else
  // fills, and the peak would depend on the order in which they came.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 16 << 20);
}

int set_threads(int threads, int local_ranks) {
  if (threads <= 0) {
    const char* wanted = std::getenv("OMP_NUM_THREADS");
    threads =
        wanted ? std::atoi(wanted) : static_cast<int>(std::thread::hardware_concurrency()) / std::max(1, local_ranks);
  }
  threads = std::max(1, threads);
  at::set_num_threads(threads);
  return threads;
}

nlohmann::ordered_json build_info() {
  return {{"program", "cairn 0.1.0"},
          {"compiler", fmt::format("gcc {}", __VERSION__)},
          {"torch", TORCH_VERSION},
          {"mkl", at::get_mkl_version()},
          {"processor", processor_name()},
          {"vectors", has_avx512() ? "avx512" : "avx2"},
          {"mkl_cbwr", std::getenv("MKL_CBWR") ? std::getenv("MKL_CBWR") : ""},
          {"aten_cpu_capability", at::get_cpu_capability()},
          {"threads", at::get_num_threads()}};
}

double sgemm_peak_gflops(double seconds) {
  at::NoGradGuard no_grad;
  using Clock = std::chrono::steady_clock;
  const int64_t n = 1024;
  const at::Tensor a = at::ones({n, n}), b = at::ones({n, n});
  at::Tensor c = at::mm(a, b);
  // The fastest product counts: what slows others down (a neighbour, a core that wakes up) is not the machine's
  // ceiling.
  double best = 1e9;
  for (const auto start = Clock::now(); std::chrono::duration<double>(Clock::now() - start).count() < seconds;) {
    const auto begin = Clock::now();
    at::mm_out(c, a, b);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return 2.0 * n * n * n / best / 1e9;
}

double peak_rss_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024.0;
}

}  // namespace cairn
