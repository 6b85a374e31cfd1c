#include "trainer/rollout/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace cairn::rollout {

Scheduler::Scheduler(std::vector<std::shared_ptr<Group>> groups, PagePool& pool, int64_t page_size, int64_t max_batch,
                     int64_t prefill_rows, std::function<Sequence(std::shared_ptr<Group>, int64_t sample)> new_sequence)
    : pool_(pool),
      page_size_(page_size),
      max_batch_(max_batch),
      prefill_rows_(prefill_rows),
      new_sequence_(std::move(new_sequence)),
      waiting_(groups.begin(), groups.end()) {
  for (const auto& group : waiting_) {
    const int64_t pages = pages_of(group->length()) + own_pages(*group);
    if (pages > pool_.size())
      throw std::invalid_argument(fmt::format(
          "prompt_index {}: {} tokens and a completion of {} take {} pages of {} rows; the cache has {} (cache_mib)",
          group->request->prompt_index, group->length(), group->budget, pages, page_size_, pool_.size()));
  }
}

int64_t Scheduler::own_pages(const Group& group) const {
  // The last token is never fed back. A page that the prompt fills in part is copied.
  return pages_of(group.length() + group.budget - 1) - group.length() / page_size_;
}

Scheduler::Entry Scheduler::enter() {
  Entry entry;
  int64_t rows = 0;
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < max_batch_) {
    const std::shared_ptr<Group> group = waiting_.front();
    const int64_t own = own_pages(*group), prompt = group->started > 0 ? 0 : pages_of(group->length());
    if (prompt > 0 && rows > 0 && rows + group->length() > prefill_rows_) break;
    if (own + prompt > pool_.available()) {
      ++waited_;
      break;
    }
    if (prompt > 0) {
      for (int64_t i = 0; i < prompt; ++i) group->pages.push_back(pool_.take());
      rows += group->length();
      entry.prompts.push_back(group);
    }
    pool_.promise(own);
    auto sequence = std::make_unique<Sequence>(new_sequence_(group, group->started));
    sequence->pages = group->pages;
    sequence->length = group->length();
    sequence->promised = own;
    ++group->started;
    if (group->started == group->request->samples) {
      group->pages.clear();  // the last sample has them
      waiting_.pop_front();
    } else {
      for (const int32_t page : sequence->pages) pool_.share(page);
    }
    entry.sequences.push_back(sequence.get());
    running_.push_back(std::move(sequence));
  }
  return entry;
}

int64_t Scheduler::next_slot(Sequence& sequence, std::vector<std::pair<int32_t, int32_t>>& copied) {
  const int64_t index = sequence.length / page_size_, row = sequence.length % page_size_;
  const bool beyond = index == static_cast<int64_t>(sequence.pages.size());
  if (beyond || pool_.shared(sequence.pages[index])) {
    pool_.withdraw(1), --sequence.promised;
    const int32_t page = pool_.take();
    if (beyond) {
      sequence.pages.push_back(page);
    } else {
      copied.emplace_back(sequence.pages[index], page);
      pool_.release(sequence.pages[index]);
      sequence.pages[index] = page;
    }
  }
  return sequence.pages[index] * page_size_ + row;
}

void Scheduler::leave(Sequence* sequence) {
  for (const int32_t page : sequence->pages) pool_.release(page);
  pool_.withdraw(sequence->promised);
  std::erase_if(running_, [&](const auto& one) { return one.get() == sequence; });
}

}  // namespace cairn::rollout
