#include "trainer/rollout/page_pool.h"

#include <stdexcept>

namespace cairn::rollout {

PagePool::PagePool(int64_t pages) : references_(pages, 0) {
  for (int64_t page = pages; page > 0; --page)
    free_.push_back(static_cast<int32_t>(page - 1));  // the lowest comes first
}

int32_t PagePool::take() {
  if (free_.empty()) throw std::logic_error("rollout: no page is free, though one was promised");
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void PagePool::release(int32_t page) {
  if (--references_[page] == 0) free_.push_back(page);
}

}  // namespace cairn::rollout
