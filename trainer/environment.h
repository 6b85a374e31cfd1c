// What must hold in the process before the first product: reproducible MKL, memory that is reused, threads.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace cairn {

// Call first thing in main. Unless the user chose otherwise: MKL_CBWR = "AVX512,STRICT" or "AVX2,STRICT" (strict: the
// bits of a product do not depend on the number of threads; 3 to 5% slower than MKL's default), a GNU allocator that
// keeps freed blocks, and threads that sleep instead of spinning where ranks share cores. SIGPIPE is ignored: a run
// outlives the console that it was started on.
void prepare_process();

// 0: OMP_NUM_THREADS where set, else the processors of this machine divided by `local_ranks`.
int set_threads(int threads, int local_ranks = 1);

// Program, libraries, processor, threads and what else decides bits: RUN/build.json.
nlohmann::ordered_json build_info();

// GFLOP/s of a square float32 product, measured for about `seconds`: the machine's ceiling in this very run.
double sgemm_peak_gflops(double seconds);

// Peak resident memory of this process so far, MiB.
double peak_rss_mib();

}  // namespace cairn
