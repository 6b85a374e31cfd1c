#include "trainer/rollout/sequence.h"

#include <algorithm>

namespace cairn::rollout {

bool Completion::push(int32_t id, float logprob) {
  ids_.push_back(id);
  logprobs_.push_back(logprob);
  if (std::find(ends_.begin(), ends_.end(), id) != ends_.end()) {
    finish_reason_ = "eos";
    return true;
  }
  text_.push(id);
  if (text_.stopped()) {
    finish_reason_ = "stop";
    return true;
  }
  return size() == budget_;
}

Sample Completion::finish() {
  text_.finish();
  return {
      .ids = std::move(ids_), .logprobs = std::move(logprobs_), .finish_reason = finish_reason_, .text = text_.text()};
}

}  // namespace cairn::rollout
