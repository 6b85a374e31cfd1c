#include "trainer/large_pages.h"

#include <sys/mman.h>

namespace cairn {

void use_large_pages(const at::Tensor& tensor) {
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  constexpr uintptr_t kLeast = 4 * kPage;
#ifdef MADV_COLLAPSE
  constexpr int kCollapse = MADV_COLLAPSE;
#else
  constexpr int kCollapse = 25;  // Linux 6.1; glibc 2.36 does not name it yet
#endif
  if (!tensor.defined() || !tensor.is_cpu() || !tensor.has_storage()) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.storage().data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  end = (begin + tensor.storage().nbytes()) / kPage * kPage;
  if (begin == 0 || end < first + kLeast) return;
  // Advice: where it is not taken, everything works as before.
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  madvise(reinterpret_cast<void*>(first), end - first, kCollapse);
}

}  // namespace cairn
