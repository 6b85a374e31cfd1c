// Who is decoded together: sequences enter in order when their pages are sure, and leave when they are done.
#pragma once

#include <deque>
#include <functional>

#include "trainer/rollout/page_pool.h"
#include "trainer/rollout/sequence.h"

namespace cairn::rollout {

class Scheduler {
 public:
  // Groups in the order in which they enter. Throws std::invalid_argument naming the prompt whose completion would not
  // fit into all pages. `new_sequence` makes a sequence of a group.
  Scheduler(std::vector<std::shared_ptr<Group>> groups, PagePool& pool, int64_t page_size, int64_t max_batch,
            int64_t prefill_rows, std::function<Sequence(std::shared_ptr<Group>, int64_t sample)> new_sequence);

  struct Entry {
    std::vector<std::shared_ptr<Group>> prompts;  // to be computed first; their pages are taken
    std::vector<Sequence*> sequences;             // that enter, whose first token comes from their group's logits
  };
  // Lets in what fits: no more than max_batch sequences, prompts of at most prefill_rows rows together (one always).
  Entry enter();
  // Where the next row of the sequence goes, page * page_size + row; a shared page is left to the others: then `copied`
  // gets {from, to}.
  int64_t next_slot(Sequence& sequence, std::vector<std::pair<int32_t, int32_t>>& copied);
  // Its pages are given back; the pointer is dead.
  void leave(Sequence* sequence);

  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  bool done() const { return running_.empty() && waiting_.empty(); }
  int64_t waited() const { return waited_; }  // times that a free place was not taken for want of pages

 private:
  int64_t pages_of(int64_t rows) const { return (rows + page_size_ - 1) / page_size_; }
  // Pages that a completion may take beside those of its prompt that are full.
  int64_t own_pages(const Group& group) const;

  PagePool& pool_;
  int64_t page_size_, max_batch_, prefill_rows_, waited_ = 0;
  std::function<Sequence(std::shared_ptr<Group>, int64_t)> new_sequence_;
  std::deque<std::shared_ptr<Group>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
};

}  // namespace cairn::rollout
