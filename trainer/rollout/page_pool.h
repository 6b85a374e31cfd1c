// Which pages of a cache are free, who shares the others, and how many are promised to sequences that will grow.
#pragma once

#include <cstdint>
#include <vector>

namespace cairn::rollout {

// Page numbers alone: the rows lie in models::PagedCache. A sequence is let in when all pages that it may ever need are
// promised to it, so that no sequence ever has to give way to another.
class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t size() const { return static_cast<int64_t>(references_.size()); }
  int64_t used() const { return size() - static_cast<int64_t>(free_.size()); }
  // Free and promised to nobody.
  int64_t available() const { return static_cast<int64_t>(free_.size()) - promised_; }

  void promise(int64_t pages) { promised_ += pages; }
  void withdraw(int64_t pages) { promised_ -= pages; }
  // A free page with one reference; the caller takes it out of a promise first, or has seen available().
  int32_t take();
  void share(int32_t page) { ++references_[page]; }
  bool shared(int32_t page) const { return references_[page] > 1; }
  // Gives one reference back; with the last one the page is free.
  void release(int32_t page);

 private:
  std::vector<int32_t> references_, free_;
  int64_t promised_ = 0;
};

}  // namespace cairn::rollout
