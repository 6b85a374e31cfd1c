// Included first by every simd_*.cpp, before Highway: which instruction sets are compiled. On x86-64: SSE4 (the least
// that runs), AVX2, AVX-512. AVX2 and AVX-512 give the same bits; SSE4 has no fused multiply-add and rounds otherwise.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_SSE4
#endif
